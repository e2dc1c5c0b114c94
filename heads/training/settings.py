"""Training settings: the layers and the training options that all heads of a study share. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from alphafuse.errors import ExperimentError
from alphafuse.heads.model.checks import check_choice, check_count, check_share, from_fields
from alphafuse.heads.model.config import HeadSettings

Schedule = Literal["constant", "cosine", "two-phase"]
ClassWeights = Literal["none", "balanced"]
Device = Literal["auto", "cpu", "cuda"]
NORMALIZE_NOTES = {
    "zscore": "Standardised embeddings: transforms that only scale (pos-scalar, neg-scalar, scale) change nothing.",
    "variance": "Streams of equal total variance: transforms that only scale (pos-scalar, neg-scalar, scale) change "
    "nothing.",
    "l2": "Embeddings of length 1: transforms that only scale (pos-scalar, neg-scalar, scale) change nothing.",
}
SECOND_PHASE = 0.1  # the paper gives no value: "a lower rate" for its second 25 epochs


@dataclass(frozen=True)
class TrainSettings(HeadSettings):
    """Settings that all heads of a study share; the defaults are the paper's (section 3 and the authors' notebook).

    Adds the training options to the fields of `HeadSettings`.

    Attributes:
        hidden, dropout, modality_dropout, normalize, absent: as in `HeadSettings`.
        epochs: passes over the training clips; the last epoch's head is used, unless `patience` is given.
        batch_size: clips per step; the last batch of an epoch may be smaller.
        learning_rate: Adam's learning rate, above 0.
        schedule: "constant"; "cosine" (falls to 0 along half a cosine, step by step; Loshchilov and Hutter 2017);
            "two-phase" (the paper's variant: the same number of epochs again at a tenth of the rate, 2 x `epochs` in
            total).
        weight_decay: Adam's L2 term, at least 0.
        label_smoothing: share in [0, 1) of the target that is spread evenly over all classes (Szegedy et al. 2016).
        mixup: a of Beta(a, a), the distribution of the share with which each batch's embeddings and targets are mixed
            with a permutation of the batch (Zhang et al. 2018), after transform and normalisation; 0 turns it off.
        class_weights: "none", or "balanced": a clip's weight is n / (C n_class), scikit-learn's formula.
        patience: number of epochs without a better validation loss after which training stops; the best epoch's head
            is used. None trains all epochs and uses the last one's.
        device: "auto" uses CUDA if it is available.
        memory_gb: memory for training features in 10^9 bytes; a larger split is streamed from its store in windows.
            None: half of the free memory.

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

    epochs: int = field(default=25, metadata={"help": "Passes over the training clips."})
    batch_size: int = field(default=8, metadata={"help": "Clips per step."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Adam's learning rate."})
    schedule: Schedule = field(
        default="constant",
        metadata={"help": "Learning rate: constant, cosine, or two-phase (the same epochs again at a tenth)."},
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Adam's L2 term."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of the target spread over all classes."})
    mixup: float = field(default=0.0, metadata={"help": "Mix embeddings: a of Beta(a, a); 0 = off."})
    class_weights: ClassWeights = field(default="none", metadata={"help": "Weights of classes: none or balanced."})
    patience: int | None = field(
        default=None, metadata={"help": "Stop early: epochs without a better validation loss. [default: off]"}
    )
    device: Device = field(default="auto", metadata={"help": "auto, cpu or cuda."})
    memory_gb: float | None = field(
        default=None, metadata={"help": "GB for features; a larger split is streamed. [default: half of free]"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        if self.patience is not None:
            check_count("patience", self.patience)
        for name in ("learning_rate", "memory_gb"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ExperimentError(f"{name} must be above 0, not {value}")
        for name in ("weight_decay", "mixup"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ExperimentError(f"{name} must be 0 or more, not {value}")
        check_share("label_smoothing", self.label_smoothing)
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_choice("class weights", self.class_weights, get_args(ClassWeights))
        check_choice("device", self.device, get_args(Device))

    @property
    def total_epochs(self) -> int:
        """Number of epochs of all phases."""
        return 2 * self.epochs if self.schedule == "two-phase" else self.epochs

    def learning_rate_at(self, progress: float) -> float:
        """Return the learning rate after this share of all steps; `progress` in [0, 1)."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "two-phase" and progress >= 0.5:
            return self.learning_rate * SECOND_PHASE
        return self.learning_rate

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return {**asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainSettings:
        """The inverse of `to_json`; `ExperimentError` for a field that doesn't exist."""
        return from_fields(cls, content, what="training setting")
