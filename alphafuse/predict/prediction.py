"""What a run says of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ranked:
    """A label and its probability in [0, 1], the mean over the run's heads."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a run says of a clip.

    Attributes:
        clip: the file.
        top: the most probable labels, the most probable first; none where there is no answer.
        agreeing: how many of the run's heads put the first label first.
        heads: how many heads there are.
        missing: modality -> why the clip has no such embedding, of those that the heads read.
        probabilities: (C,) float64 in the order of `AlphaFuse.classes`, NaN where there is no answer.

    >>> from alphafuse import AlphaFuse, find_clips
    >>> prediction = AlphaFuse.from_pretrained("demo/runs/sqrt-ast")(find_clips(["demo/clips"])[0])
    >>> prediction.label == prediction.top[0].label, prediction.heads, prediction.probabilities.shape
    (True, 1, (16,))
    """

    clip: Path
    top: tuple[Ranked, ...]
    agreeing: int
    heads: int
    missing: Mapping[str, str]
    probabilities: np.ndarray

    def __repr__(self) -> str:
        says = f"{self.top[0].label!r} {self.top[0].probability:.1%}" if self.top else f"no answer, {self.missing}"
        return f"Prediction({self.clip.name!r}: {says})"

    @property
    def label(self) -> str | None:
        """The most probable label; None where there is no answer."""
        return self.top[0].label if self.top else None

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able, without the probabilities of all classes."""
        return {
            "clip": str(self.clip),
            "top": [{"label": ranked.label, "probability": ranked.probability} for ranked in self.top],
            "heads": self.heads,
            "agreeing": self.agreeing,
            "missing": dict(self.missing),
        }
