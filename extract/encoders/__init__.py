"""Encoders: frames or a waveform -> an embedding.

families      config.json's model_type -> the builder of an encoder
timesformer   TimeSformer's input and forward pass
ast           AST's input (the spectrogram) and forward pass
transformer   fast transformer blocks for both
encoder       Encoder: a frozen model with its preprocessing; Placement: its device and precision
hub           locations of an encoder's files; doesn't load torch
checkpoints/  original .pyth and .pth files -> HuggingFace folders
compact/      weights of the small encoders of the package
"""
