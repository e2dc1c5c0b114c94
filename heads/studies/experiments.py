"""What an experiment is: which modalities are fused, how, and what is done to them before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alphafuse.data.embeddings import MODALITIES
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.errors import ExperimentError, unknown
from alphafuse.heads.model.fusion import check_fusion
from alphafuse.heads.model.head import (
    BOTH,
    NORMALIZATIONS,
    HeadConfig,
    check_controls,
    check_normalization,
    check_target,
)
from alphafuse.heads.model.transforms import NOTEBOOK_POS_SCALAR, check_transform
from alphafuse.heads.training.settings import TrainSettings

TITLES = {"timesformer": "TimeSformer", "ast": "AST", BOTH: "both"}


@dataclass(frozen=True)
class Experiment:
    """What is fused, and how.

    Attributes:
        transform: entry of `TRANSFORMS`.
        on: the modality that is transformed, "both", or None with transform "none".
        alpha: for the transforms that take one.
        fusion: entry of `FUSIONS`.
        modalities: what the head reads: both, or one.
        normalize: entry of `NORMALIZATIONS`; None takes the training settings'.
        rates: (modality, learning rate as a multiple of the common one), as in `HeadConfig`; a mapping will do.
        auxiliary: (modality or "fused", weight of its loss), as in `HeadConfig`; a mapping will do.

    Raises:
        ExperimentError: a name that doesn't exist, or parts that don't go together.

    >>> from alphafuse import Experiment
    >>> Experiment("sqrt", on="ast").name
    'sqrt-ast'
    >>> Experiment(modalities=("ast",)).title
    'AST only'
    >>> Experiment("sqr", on="ast")
    Traceback (most recent call last):
        ...
    alphafuse.errors.ExperimentError: unknown transform 'sqr' (did you mean 'sqrt'?): choose from none, sqrt, ...
    """

    transform: str = "none"
    on: str | None = None
    alpha: float | None = None
    fusion: str = "concat"
    modalities: tuple[str, ...] = MODALITIES
    normalize: Literal["none", "zscore", "l2"] | None = None
    rates: tuple[tuple[str, float], ...] = ()
    auxiliary: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for modality in self.modalities:
            if modality not in MODALITIES:
                raise ExperimentError(unknown("modality", modality, MODALITIES))
        object.__setattr__(self, "modalities", tuple(m for m in MODALITIES if m in self.modalities))
        if not self.modalities:
            raise ExperimentError(f"an experiment needs at least one modality: {', '.join(MODALITIES)}")
        check_transform(self.transform, self.alpha)
        check_target(self.transform, self.on, self.modalities)
        check_fusion(self.fusion, self.modalities)
        if self.normalize is not None:
            if self.normalize not in NORMALIZATIONS:
                raise ExperimentError(unknown("normalisation", self.normalize, NORMALIZATIONS))
            check_normalization(self.normalize, self.transform)
        for name in ("rates", "auxiliary"):
            pairs = dict(getattr(self, name))
            object.__setattr__(self, name, tuple(sorted((key, float(value)) for key, value in pairs.items())))
        check_controls(self.fusion, dict(self.rates), dict(self.auxiliary), self.modalities)
        if self.transform == "none":
            object.__setattr__(self, "on", None)  # none on ast = none on timesformer

    @property
    def name(self) -> str:
        """Short, for a run's folder: "sqrt-ast", "scale-0.5-timesformer", "untransformed", "ast-only", "gate"."""
        parts = [self.transform, "" if self.alpha is None else f"{self.alpha:g}", self.on or ""]
        single = len(self.modalities) == 1
        if self.transform == "none":
            parts = [] if single or self._more else ["untransformed"]
        parts += [f"{self.modalities[0]}-only"] if single else []
        return "-".join(part for part in (*parts, *self._more) if part)

    @property
    def title(self) -> str:
        """For a table's row: "AST sqrt", "untransformed", "AST only", "gate"."""
        alpha = "" if self.alpha is None else f" {self.alpha:g}"
        parts = [f"{TITLES[self.modalities[0]]} only"] if len(self.modalities) == 1 else []
        if self.transform != "none":
            parts = [f"{parts[0] if parts else TITLES[str(self.on)]} {self.transform}{alpha}"]
        parts += [part.replace("-", " ") for part in self._more]
        return ", ".join(parts) or "untransformed"

    @property
    def _more(self) -> list[str]:
        """What sets it apart beside transform and modalities."""
        parts = [] if self.fusion == "concat" else [self.fusion]
        parts += [] if self.normalize in (None, "none") else [str(self.normalize)]
        parts += [f"rate-{rate:g}-{modality}" for modality, rate in self.rates]
        return parts + (["blended"] if self.auxiliary else [])

    def head_config(self, train: EmbeddingSource, classes: Sequence[str], settings: TrainSettings) -> HeadConfig:
        """The head for these embeddings; `ExperimentError` when they lack a modality.

        `pos-scalar` is the paper's 1.5, or the 2 of its authors' code for embeddings of protocol `notebook`.
        """
        for modality in self.modalities:
            if modality not in train.dims:
                raise ExperimentError(
                    f"no training clip has a {modality} embedding: see `alphafuse store info`, or choose the other "
                    "modality alone"
                )
        transform, alpha = self.transform, self.alpha
        if transform == "pos-scalar" and is_notebook(train.recipes):
            transform, alpha = "scale", NOTEBOOK_POS_SCALAR
        return HeadConfig(
            dims={modality: train.dims[modality] for modality in self.modalities},
            classes=tuple(classes),
            transform=transform,
            on=self.on,
            alpha=alpha,
            fusion=self.fusion,
            hidden=settings.hidden,
            dropout=settings.dropout,
            absent=settings.absent,
            normalize=self.normalize or settings.normalize,
            modality_dropout=settings.modality_dropout if len(self.modalities) > 1 else 0.0,
            rates=dict(self.rates) or None,
            auxiliary=dict(self.auxiliary) or None,
        )


def is_notebook(recipes: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether embeddings were made by protocol `notebook`, from their store's recipes."""
    return any(made.get("protocol") == "notebook" for made in recipes.values())


BASELINE = Experiment()
