"""A trained run at work.

model        `AlphaFuse`: clips in, labels out
prediction   what it says of a clip
explain      why: the same clip with a modality blank, and along alpha
bundle       a run in one folder that travels
card         the model card inside of it
push         a bundle to the hub
"""
