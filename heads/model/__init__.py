"""What a head is, and what it computes.

    config      an experiment, a head's settings, and both with dimensions and classes: every field, once
    checks      checks of fields
    transforms  what is done to embeddings before fusion, by name
    fusion      layers that make one vector of the modalities' vectors
    head        the PyTorch module: transform, normalise, fuse, classify; saved, loaded, asked

config, checks and transforms load no torch: the command line is made of them.
"""
