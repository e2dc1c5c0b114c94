"""Encoders: frames or a waveform -> an embedding.

families      config.json's model_type -> the builder of an encoder
timesformer   TimeSformer's input and forward pass
ast           AST's input (the spectrogram) and forward pass
transformer   fast transformer blocks for both
video         VideoMAE, ViViT, V-JEPA 2
image         DINOv2, DINOv3, CLIP, SigLIP, SigLIP 2: frame by frame, averaged
clap          CLAP's audio side
whisper       Whisper's encoder
waveform      wav2vec 2.0, HuBERT, WavLM
pe            PE-AV: its picture side and its sound side
generic       any other model of transformers that takes pictures or sound
code          Python code of a user: a function or a factory
inputs        options, settings of preprocessors, and frames -> the model's input, for these families
encoder       Encoder: a frozen model with its preprocessing; Placement: its device and precision
hub           locations of an encoder's files; doesn't load torch
checkpoints/  original .pyth and .pth files -> HuggingFace folders
compact/      weights of the small encoders of the package
"""
