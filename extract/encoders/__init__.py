"""Frames or a waveform -> an embedding.

families      config.json's model_type -> the builder of an encoder
timesformer   what TimeSformer is fed, and its forward pass
ast           what AST is fed (the spectrogram is made here), and its forward pass
transformer   the fast transformer blocks that they share
encoder       Encoder: a frozen model with its preprocessing; Placement: on which device, in which precision
hub           where an encoder's files are; imports no torch
checkpoints/  original .pyth and .pth files -> HuggingFace folders
compact/      the weights of the small encoders that are shipped
"""
