"""Experiments, comparisons, sweeps, the paper's table, and their run folders."""
