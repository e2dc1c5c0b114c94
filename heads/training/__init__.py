"""Training many heads at once."""
