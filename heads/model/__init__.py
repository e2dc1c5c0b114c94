"""Transforms, fusions, heads."""
