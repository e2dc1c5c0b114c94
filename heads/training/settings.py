"""How heads are trained: one frozen set of settings, saved with every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from alphafuse.errors import ExperimentError, unknown
from alphafuse.heads.model.head import ABSENT, DROPOUT, HIDDEN, NORMALIZATIONS

DEVICES = ("auto", "cpu", "cuda")
SCHEDULES = ("constant", "cosine", "two-phase")
CLASS_WEIGHTS = ("none", "balanced")
NORMALIZE_NOTES = {
    "zscore": "Standardised embeddings: transforms that only scale (pos-scalar, neg-scalar, scale) change nothing.",
    "l2": "Embeddings of length 1: transforms that only scale (pos-scalar, neg-scalar, scale) change nothing.",
}
SECOND_PHASE = 0.1  # the paper says "a lower rate" for its second 25 epochs, and not which


@dataclass(frozen=True)
class TrainSettings:
    """How heads are trained; the defaults are the paper's (section 3 and the authors' notebook).

    Attributes:
        epochs: passes over the training clips; the last epoch's head counts, unless `patience` is given.
        batch_size: clips per step; the last batch of an epoch may be smaller.
        learning_rate: Adam's, above 0.
        schedule: "constant"; "cosine" (falls to 0 along half a cosine, step by step; Loshchilov and Hutter 2017);
            "two-phase" (the paper's variant: as many epochs again at a tenth of the rate, so 2 x `epochs` in all).
        weight_decay: Adam's L2 term, at least 0.
        label_smoothing: share in [0, 1) of the target that goes to all classes alike (Szegedy et al. 2016).
        mixup: a of the Beta(a, a) that mixes each batch's embeddings and targets with the same batch in another order
            (Zhang et al. 2018; after transform and normalisation); 0 mixes nothing.
        class_weights: "none", or "balanced": clips count n / (C n_class), scikit-learn's formula.
        patience: stop when the validation loss has not improved for so many epochs, and take the best epoch's head;
            None trains all epochs and takes the last.
        hidden, dropout, modality_dropout, normalize, absent: as in `HeadConfig`.
        device: "auto" is CUDA when there is one.
        memory_gb: memory for training features in 10^9 bytes; a larger split is streamed from its store in windows.
            None: half of what is free.

    Raises:
        ExperimentError: a value out of range.

    >>> from alphafuse import TrainSettings
    >>> settings = TrainSettings(epochs=50, schedule="two-phase", patience=5)
    >>> settings.total_epochs, settings.learning_rate_at(0.75)
    (100, 1e-05)
    >>> TrainSettings(dropout=1.0)
    Traceback (most recent call last):
        ...
    alphafuse.errors.ExperimentError: dropout must be in [0, 1), not 1.0
    """

    epochs: int = 25
    batch_size: int = 8
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine", "two-phase"] = "constant"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    patience: int | None = None
    hidden: tuple[int, ...] = HIDDEN
    dropout: float = DROPOUT
    modality_dropout: float = 0.0
    normalize: Literal["none", "zscore", "l2"] = "none"
    absent: Literal["drop", "zeros"] = "drop"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name in ("epochs", "batch_size") + (("patience",) if self.patience is not None else ()):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ExperimentError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name in ("learning_rate", "memory_gb"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ExperimentError(f"{name} must be above 0, not {value}")
        for name in ("weight_decay", "mixup"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ExperimentError(f"{name} must be 0 or more, not {value}")
        for name in ("dropout", "modality_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ExperimentError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        choices: tuple[tuple[str, str, Sequence[str]], ...] = (
            ("schedule", self.schedule, SCHEDULES),
            ("class weights", self.class_weights, CLASS_WEIGHTS),
            ("normalisation", self.normalize, NORMALIZATIONS),
            ("treatment of absent embeddings", self.absent, ABSENT),
            ("device", self.device, DEVICES),
        )
        for what, value, known in choices:
            if value not in known:
                raise ExperimentError(unknown(what, value, known))

    @property
    def total_epochs(self) -> int:
        """Epochs of all phases."""
        return 2 * self.epochs if self.schedule == "two-phase" else self.epochs

    def learning_rate_at(self, progress: float) -> float:
        """Adam's rate when this share, in [0, 1), of all steps is done."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "two-phase" and progress >= 0.5:
            return self.learning_rate * SECOND_PHASE
        return self.learning_rate

    def torch_device(self) -> torch.device:
        """The device to train on; `ExperimentError` when CUDA is asked for and there is none."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ExperimentError("no CUDA device here: use --device cpu (or auto)")
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return {**asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TrainSettings:
        """The inverse of `to_json`; `ExperimentError` for a field that doesn't exist."""
        strange = [name for name in content if name not in cls.__dataclass_fields__]
        if strange:
            raise ExperimentError(unknown("training setting", strange[0], list(cls.__dataclass_fields__)))
        return cls(**content)
