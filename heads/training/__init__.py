"""Training many heads at once.

settings    the training settings that all heads of a study share; loads no torch
train       `train_heads`: selects clips, groups heads into stacks, runs them in threads or processes
ray         the same stacks as tasks of a Ray cluster
batches     training clips in memory, or read from the store window by window
epochs      the training loop over epochs and windows; early stopping
stack       one training step of a stack of heads, with hand-written gradients
linear      fully connected layers of a stack: their matrix products and Adam's updates
"""
