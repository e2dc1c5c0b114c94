"""Studies: what is trained, on which clips, and what is found. Every study returns its result; `fit` also writes it.

same_clips   experiments trained and scored on the same clips; what "best on validation" means
fit          one experiment, and its run folder
table1       the paper's table 1
sweep        accuracy along alpha
compare      everything side by side, and the controls
evaluate     a trained run on a split: every metric, another run against it
runs         run folders: the only writer and reader
reproduce    the command and the Python lines that make a run again
"""
