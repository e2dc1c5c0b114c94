"""Stage two: train and evaluate fusion heads on cached embeddings.

    model       the fusion head: experiment, transforms, fusion, layers
    training    training of many heads together, each determined by its seed
    closed      what needs no training: nearest neighbours
    scoring     metrics, intervals and paired tests
    studies     fit, table1, sweep, compare, curve, evaluate, and their run folders
    estimator   a head as a scikit-learn classifier

training -> model; closed -> training; studies -> closed, training, scoring, model.
"""
