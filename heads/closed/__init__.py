"""What needs no training: answers computed in closed form from the cached embeddings.

    moments      one pass over a store: counts, sums and Gram matrices per fold of source videos
    ridge        ridge heads of any streams, weights and penalty, from the moments alone; their out-of-fold error
    dual         ridge heads on few clips, directly from their rows, and their error on left-out source videos
    profile      the error of many weightings, each with its best penalty; per-clip scores of the best ones
    neighbours   nearest cached clips, with a weight per stream

A weight alpha of a stream is exactly a prior in a ridge (penalty lambda / alpha^2) and exactly the metric of nearest
neighbours. That is why these two can say how much a stream should weigh, and a trained layer, which undoes any factor
on its inputs, can't.
"""
