"""The families of encoders: one entry for each supported model_type of HuggingFace's config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .ast import load_ast
from .encoder import Encoder, Placement
from .hub import MODEL_TYPES
from .timesformer import load_timesformer

FAMILIES: dict[str, Callable[[str, Placement | None], Encoder]] = {
    "timesformer": load_timesformer,
    "audio-spectrogram-transformer": load_ast,
}


def load_encoders(names: Mapping[str, str], placement: Placement | None = None) -> dict[str, Encoder]:
    """Load the encoder of each stream.

    Args:
        names: stream -> hub id, folder or "compact".
        placement: device, precision and preprocessing; by default on the CPU in float32.

    Raises:
        EncoderError: one of them can't be loaded.
    """
    return {stream: FAMILIES[MODEL_TYPES[stream]](name, placement) for stream, name in names.items()}
