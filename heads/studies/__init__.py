"""Studies: each trains heads and evaluates them. Every study returns its result; `fit` also writes it.

probe        the grid of settings among which validation clips choose
same_clips   the clips that a study uses; heads trained and scored on them; defines "best on validation"
fit          one experiment, and its run folder
table1       the paper's table 1
sweep        accuracy along alpha
compare      every fusion and transform in one table, with control experiments
weigh        how much each stream should weigh, and the head that follows from it, in closed form
contribute   what each stream contributes: what the embeddings offer to heads of every subset of the streams
use          what a trained run uses of its streams
permuted_stream  embeddings in which one stream is that of other clips
curve        accuracy against training clips per class, in closed form
mteb         the protocol of MTEB's VGGSound tasks, and what its folds leak
evaluate     a trained run on a split: every metric, optionally against another run
best_run     the run that `predict` uses when none is named
runs         run folders: the only module that writes and reads them
reproduce    the command or Python line that reproduces a run
"""
