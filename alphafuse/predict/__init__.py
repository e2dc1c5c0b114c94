"""Predictions with a trained run.

model        `AlphaFuse`: clips in, labels out
prediction   the labels of one clip
explain      why: predictions with a stream blank, and along alpha
shares       what each stream brings to the answer's lead over the second label
bundle       export a run as one folder
card         the model card of that folder
push         push a bundle to the hub
"""
