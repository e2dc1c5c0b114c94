"""Compact encoders for the demo: a TimeSformer and an AST, in HuggingFace format."""
