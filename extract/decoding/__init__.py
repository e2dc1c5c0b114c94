"""A file -> frames and waveform."""
