"""Scores of heads, their intervals and significance tests.

metrics      scores of logits, and whole evaluations: accuracies, mAP, AUC, d', log loss, calibration
statistics   intervals and paired tests; the source video is the unit of resampling
vggsounder   multi-label scores on VGGSounder's labels
"""
