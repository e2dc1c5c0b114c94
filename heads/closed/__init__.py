"""What needs no training: answers computed in closed form from the cached embeddings.

    moments      one pass over a store: counts, sums and Gram matrices per fold of source videos
    ridge        ridge heads of any streams, weights and penalty, from the moments alone; their out-of-fold error
    systems      its linear systems, in the space of the dimensions or of the clips, whichever is smaller
    dual         ridge heads on few clips, directly from their rows, and their error on left-out source videos
    profile      that error for many weightings, each with its best penalty
    rows         scores of such heads on the clips of a store: accuracy, losses per source video
    mixture      probabilities: temperature, and the weights of late fusion
    recommend    what to do about each stream: drop it, weigh it like the others, or differently
    neighbours   nearest cached clips, with a weight per stream

A weight alpha of a stream is exactly a prior in a ridge (penalty lambda / alpha^2) and exactly the metric of nearest
neighbours. That is why these two can say how much a stream should weigh, and a trained layer, which undoes any factor
on its inputs, can't.
"""
