"""The prediction of a run for one clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.coverage import Coverage


@dataclass(frozen=True)
class Ranked:
    """A label and its probability in [0, 1], a mean over the run's heads."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The prediction of a run for one clip.

    Attributes:
        clip: the file.
        top: the most probable labels, in descending order; empty without an answer.
        agreeing: number of heads that rank the first label first.
        heads: number of heads.
        missing: stream -> why the clip has no such embedding; only streams that the heads use.
        media: stream -> "video" or "audio", of the streams that the heads use.
        probabilities: (C,) float64 in the order of `AlphaFuse.classes`, NaN without an answer.
        coverage: what each stream hears of the clip (its clip_id is the file's name), for streams that hear.

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
    media: Mapping[str, str]
    probabilities: np.ndarray
    coverage: tuple[Coverage, ...] = ()

    def __repr__(self) -> str:
        says = f"{self.top[0].label!r} {self.top[0].probability:.1%}" if self.top else f"no answer, {self.missing}"
        return f"Prediction({self.clip.name!r}: {says})"

    @property
    def label(self) -> str | None:
        """The most probable label; None without an answer."""
        return self.top[0].label if self.top else None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as json-able values, without the probabilities of all classes."""
        return {
            "clip": str(self.clip),
            "top": [{"label": ranked.label, "probability": ranked.probability} for ranked in self.top],
            "heads": self.heads,
            "agreeing": self.agreeing,
            "missing": dict(self.missing),
            "unheard_seconds": {one.stream: one.unheard_seconds for one in self.coverage},
        }
