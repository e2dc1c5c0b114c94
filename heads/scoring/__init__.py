"""How well heads do, and what that can mean.

metrics      scores of logits, and whole evaluations: accuracies, mAP, AUC, d', log loss, calibration
statistics   intervals and paired tests, with the source video as the unit of chance
vggsounder   multi-label scores on VGGSounder's labels
"""
