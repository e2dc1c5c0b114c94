"""Training many heads at once.

settings    what the heads of a study have in common; loads no torch
train       `train_heads`: which clips, which stacks, in which threads or processes
ray         the same stacks as tasks of a Ray cluster
batches     training clips in memory, or read from the store window by window
epochs      stacks go through the windows, epoch by epoch; early stopping
stack       one step of a stack of heads, written out
linear      fully connected layers of a stack: their products and Adam's updates
"""
