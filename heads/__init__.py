"""Stage two: train and evaluate fusion heads on cached embeddings.

    model       the fusion head: experiment, transforms, fusion, layers
    training    training of many heads together, each determined by its seed
    scoring     metrics, intervals and paired tests
    studies     fit, table1, sweep, compare, contribute, evaluate, and their run folders
    estimator   a head as a scikit-learn classifier

training -> model; studies -> training, scoring, model.
"""
