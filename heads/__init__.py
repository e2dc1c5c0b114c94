"""Stage two: train and evaluate fusion heads on cached embeddings.

    model       the fusion head: experiment, transforms, fusion, layers
    training    training of many heads together, each determined by its seed
    closed      what needs no training: ridge heads of any weighting, nearest neighbours
    scoring     metrics, intervals and paired tests
    studies     weigh, contribute, fit, table1, sweep, compare, curve, evaluate, and their run folders
    estimator   a head as a scikit-learn classifier

training -> model; closed -> training, scoring; studies -> closed, training, scoring, model.
"""
