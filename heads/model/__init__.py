"""The fusion head: its configuration and its computation.

    config      Experiment, HeadSettings and HeadConfig: every field is defined here, once
    checks      checks of fields
    transforms  alpha-transforms of embeddings before fusion, by name
    fusion      layers that fuse the streams' vectors into one
    head        the PyTorch module: transform, normalise, fuse, classify; save, load, predict

config, checks and transforms load no torch, because the command line imports them.
"""
