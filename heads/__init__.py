"""Stage two: train and evaluate fusion heads on cached embeddings.

    model       what a head is: experiment, transforms, fusion, layers
    training    many heads at once, each a function of its seed
    scoring     metrics, intervals and paired tests
    studies     fit, table1, sweep, compare, evaluate, and their run folders
    estimator   a head as a scikit-learn classifier

training -> model; studies -> training, scoring, model.
"""
