"""Frames or a waveform -> an embedding."""
