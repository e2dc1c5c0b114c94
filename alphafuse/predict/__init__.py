"""Clips in, answers out: predictions with a trained run; similar clips.

model        `AlphaFuse`: clips in, labels out
prediction   the labels of one clip
explain      why: predictions with a stream blank, and along alpha
similar      the cached clips that are most like a clip; needs no run
shares       what each stream brings to the answer's lead over the second label
bundle       export a run as one folder
card         the model card of that folder
push         push a bundle to the hub
"""
