"""The version of alphafuse."""

__version__ = "0.1.0"
