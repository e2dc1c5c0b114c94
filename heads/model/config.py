"""What a head is, as plain values; each field and each check stands here once.

    Experiment      what is fused and how: what sets the heads of a study apart
    HeadSettings    the rest of the head: hidden layers, dropout, normalisation, absent embeddings
    HeadConfig      all that decides a head's shape and function: dimensions, classes, an Experiment, HeadSettings

Loads no torch. The command line makes its options of the fields that have a `help`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from alphafuse.data.streams import MODALITIES
from alphafuse.errors import ExperimentError

from .checks import check_choice, check_count, check_share, from_fields, pick
from .transforms import NOTEBOOK_POS_SCALAR, TRANSFORMS, check_transform

if TYPE_CHECKING:
    from alphafuse.data.store.lazy import EmbeddingSource

BOTH = "both"
FUSED = "fused"  # in `Experiment.auxiliary`: the loss of the head itself
FUSIONS = ("concat", "add", "matrix", "gate", "attention")  # their layers: `fusion.LAYERS`
TITLES = {"timesformer": "TimeSformer", "ast": "AST", BOTH: "both"}

Normalize = Literal["none", "zscore", "l2"]
Absent = Literal["drop", "zeros"]


def check_fusion(name: str, modalities: Sequence[str]) -> None:
    """Raise `ExperimentError` for a fusion that doesn't exist, or that joins two modalities where there is one."""
    check_choice("fusion", name, FUSIONS)
    if name != "concat" and len(modalities) < 2:
        raise ExperimentError(
            f"fusion '{name}' joins two modalities, but the head reads only {' and '.join(modalities)}: use concat"
        )


@dataclass(frozen=True)
class Experiment:
    """What is fused, and how.

    Attributes:
        transform: entry of `TRANSFORMS`.
        on: the modality that is transformed, "both", or None with transform "none".
        alpha: for the transforms that take one.
        fusion: one of `FUSIONS`.
        modalities: what the head reads: both, or one.
        normalize: another normalisation than the settings'; None takes theirs (see `HeadSettings.normalize`).
        rates: (modality, its own learning rate as a multiple of the common one) for its columns of the first layer;
            the control that alpha is compared with. Needs fusion concat; a mapping will do.
        auxiliary: (modality or "fused", weight of its loss): each modality's expert of fusion `gate` gets a linear
            classifier of its own while training (gradient blending, Wang et al. 2020); a mapping will do.

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

    transform: str = field(
        default="none", metadata={"help": f"One of {', '.join(TRANSFORMS)}.", "choices": tuple(TRANSFORMS)}
    )
    on: str | None = field(
        default=None,
        metadata={
            "help": "timesformer, ast or both: what the transform is applied to.",
            "choices": (*MODALITIES, BOTH),
        },
    )
    alpha: float | None = field(default=None, metadata={"help": "For scale and power; optional for tanh and learned."})
    fusion: str = field(
        default="concat", metadata={"help": "concat, add, matrix, gate or attention.", "choices": FUSIONS}
    )
    modalities: tuple[str, ...] = field(
        default=MODALITIES, metadata={"help": "What the head reads: both, or one.", "choices": MODALITIES}
    )
    normalize: Normalize | None = None
    rates: tuple[tuple[str, float], ...] = ()
    auxiliary: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for modality in self.modalities:
            check_choice("modality", modality, MODALITIES)
        object.__setattr__(self, "modalities", tuple(m for m in MODALITIES if m in self.modalities))
        if not self.modalities:
            raise ExperimentError(f"an experiment needs at least one modality: {', '.join(MODALITIES)}")
        check_transform(self.transform, self.alpha)
        self._check_on()
        check_fusion(self.fusion, self.modalities)
        if self.normalize is not None:
            check_choice("normalisation", self.normalize, get_args(Normalize))
        for name in ("rates", "auxiliary"):
            pairs = dict(getattr(self, name) or ())
            object.__setattr__(self, name, tuple(sorted((key, float(value)) for key, value in pairs.items())))
        self._check_rates()
        self._check_auxiliary()
        if self.transform == "none":
            object.__setattr__(self, "on", None)  # none on ast = none on timesformer

    def _check_on(self) -> None:
        if self.on is None:
            if self.transform != "none":
                raise ExperimentError(
                    f"transform '{self.transform}' needs a modality: --on {'|'.join(self.modalities)}"
                )
            return
        check_choice("modality", self.on, (*MODALITIES, BOTH))
        if self.on not in self.modalities and not (self.on == BOTH and len(self.modalities) > 1):
            raise ExperimentError(
                f"the transform is on '{self.on}', but the head reads only {' and '.join(self.modalities)}"
            )

    def _check_rates(self) -> None:
        for modality, rate in self.rates:
            check_choice("modality", modality, self.modalities)
            if not (math.isfinite(rate) and rate > 0):
                raise ExperimentError(f"the learning rate of {modality} must be above 0, not {rate}")
        if self.rates and self.fusion != "concat":
            raise ExperimentError(f"learning rates per modality need fusion 'concat', not '{self.fusion}'")

    def _check_auxiliary(self) -> None:
        for name, weight in self.auxiliary:
            check_choice("auxiliary loss", name, (*self.modalities, FUSED))
            if not (math.isfinite(weight) and weight >= 0):
                raise ExperimentError(f"the weight of the {name} loss must be 0 or more, not {weight}")
        if self.auxiliary and self.fusion != "gate":
            raise ExperimentError(
                f"auxiliary losses need fusion 'gate', which has an expert per modality, not '{self.fusion}'"
            )

    @property
    def transformed(self) -> tuple[str, ...]:
        """The modalities that the transform changes."""
        return self.modalities if self.on == BOTH else tuple(m for m in self.modalities if m == self.on)

    @property
    def learns(self) -> bool:
        """Whether the transform or the fusion has parameters of its own."""
        return self.fusion != "concat" or TRANSFORMS[self.transform].learns

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

    def head_config(self, train: EmbeddingSource, classes: Sequence[str], settings: HeadSettings) -> HeadConfig:
        """The head for these embeddings; `ExperimentError` when they lack a modality.

        `pos-scalar` is the paper's 1.5, or the 2 of its authors' code for embeddings of protocol `notebook`.
        """
        for modality in self.modalities:
            if modality not in train.dims:
                raise ExperimentError(
                    f"no training clip has a {modality} embedding: see `alphafuse store info`, or choose the other "
                    "modality alone"
                )
        experiment = self
        if self.transform == "pos-scalar" and is_notebook(train.recipes):
            experiment = replace(self, transform="scale", alpha=NOTEBOOK_POS_SCALAR)
        return HeadConfig(train.dims, tuple(classes), experiment, settings)


def is_notebook(recipes: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether embeddings were made by protocol `notebook`, from their store's recipes."""
    return any(recipe.get("protocol") == "notebook" for recipe in recipes.values())


BASELINE = Experiment()


@dataclass(frozen=True)
class HeadSettings:
    """A head beside what it fuses: layers, dropout, normalisation, absent embeddings; the defaults are the paper's.

    Attributes:
        hidden: widths of the hidden layers; () is a linear head.
        dropout: probability in [0, 1), after each hidden layer, while training.
        modality_dropout: probability in [0, 1) that a training clip loses one of its two modalities, chosen by lot, at
            a step: with `absent="zeros"`, one head then serves clips that lack either (Neverova et al. 2016). Heads of
            one modality leave it out.
        normalize: what each modality's embeddings go through after the transform: "none"; "zscore", (x - mean) / std
            per dimension over the training clips; "l2", x / |x|.
        absent: what becomes of a clip that lacks a modality which the head reads: "drop" leaves it out (its
            predictions are NaN), "zeros" puts zeros in the place of what the absent embedding would be fused as.

    Raises:
        ExperimentError: a value out of range.

    >>> from alphafuse import HeadSettings
    >>> HeadSettings(hidden=()).dropout
    0.5
    >>> HeadSettings(absent="skip")
    Traceback (most recent call last):
        ...
    alphafuse.errors.ExperimentError: unknown treatment of absent embeddings 'skip': choose from drop, zeros
    """

    hidden: tuple[int, ...] = field(  # authors' notebook
        default=(1024, 512), metadata={"help": "Widths of hidden layers; linear = none."}
    )
    dropout: float = field(default=0.5, metadata={"help": "After each hidden layer."})  # authors' notebook
    modality_dropout: float = field(default=0.0, metadata={"help": "Share of clips that lose a modality."})
    normalize: Normalize = field(
        default="none",
        metadata={"help": "Each modality after its transform: none, zscore or l2. Scalar alphas change nothing then."},
    )
    absent: Absent = field(default="drop", metadata={"help": "Clips that lack a modality: drop or zeros."})

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))  # json has lists
        for width in self.hidden:
            check_count("hidden width", width)
        check_share("dropout", self.dropout)
        check_share("modality_dropout", self.modality_dropout)
        check_choice("normalisation", self.normalize, get_args(Normalize))
        check_choice("treatment of absent embeddings", self.absent, get_args(Absent))


@dataclass(frozen=True)
class HeadConfig:
    """Everything that decides a head's shape and function, apart from its weights.

    Attributes:
        dims: modality -> dimension of its embeddings; those that the experiment doesn't read are left out.
        classes: labels in the order of the logits.
        experiment: what is fused, and how.
        settings: hidden layers and the rest; of what derives from `HeadSettings`, only its fields are kept.

    Raises:
        ExperimentError: dimensions, classes or parts that don't go together.

    >>> from alphafuse import Experiment, HeadConfig
    >>> config = HeadConfig({"timesformer": 768, "ast": 768}, ("bark", "meow"), Experiment("scale", "ast", alpha=0.5))
    >>> config.experiment.transformed, config.settings.hidden
    (('ast',), (1024, 512))
    """

    dims: Mapping[str, int]
    classes: tuple[str, ...]
    experiment: Experiment = BASELINE
    settings: HeadSettings = HeadSettings()

    def __post_init__(self) -> None:
        for modality in self.modalities:
            if modality not in self.dims:
                raise ExperimentError(
                    f"the experiment reads {modality}, and only {' and '.join(self.dims) or 'nothing'} has a dimension"
                )
        dims = {modality: dim for modality, dim in self.dims.items() if modality in self.modalities}
        for modality, dim in dims.items():
            check_count(f"dimension of {modality}", dim)
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "settings", HeadSettings(**pick(HeadSettings, vars(self.settings))))
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ExperimentError(f"a head needs at least two classes, all different, not {len(self.classes)}")
        if self.normalize == "zscore" and TRANSFORMS[self.experiment.transform].learns:
            raise ExperimentError(
                f"transform '{self.experiment.transform}' learns its alpha, and zscore needs the mean and deviation of "
                "what comes out of it before training: use --normalize none"
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the head reads, in the order of `MODALITIES`."""
        return self.experiment.modalities

    @property
    def normalize(self) -> Normalize:
        """The normalisation: the experiment's own, else the settings'."""
        return self.experiment.normalize or self.settings.normalize

    @property
    def preparation(self) -> tuple[object, ...]:
        """What decides the transformed and normalised embeddings: equal for heads that prepare theirs alike."""
        experiment = self.experiment
        return self.modalities, experiment.transform, experiment.alpha, experiment.on, self.normalize

    def describe(self) -> str:
        """A few words that tell this head from others, for messages."""
        experiment = self.experiment
        alpha = "" if experiment.alpha is None else f" (alpha {experiment.alpha:g})"
        transformed = f"{experiment.transform}{alpha} on {experiment.on}" if experiment.on else "untransformed"
        what = f"{transformed}, {experiment.fusion} of {' and '.join(self.modalities)}"
        return what if self.normalize == "none" else f"{what}, {self.normalize}"

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able: dims, classes, experiment, settings."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HeadConfig:
        """The inverse of `to_json`; `ExperimentError` for a field that is missing or unknown."""
        for name in (one.name for one in fields(cls)):
            if name not in content:
                raise ExperimentError(f"'{name}' is missing")
        experiment = from_fields(Experiment, content["experiment"])
        settings = from_fields(HeadSettings, content["settings"])
        return from_fields(cls, {**content, "experiment": experiment, "settings": settings})


def usable_clips(embeddings: EmbeddingSource, config: HeadConfig) -> np.ndarray:
    """(clips,) bool: which clips this head can be trained on, or asked about.

    Raises:
        ExperimentError: the embeddings lack a modality altogether.
    """
    for modality in config.modalities:
        if modality not in embeddings.dims:
            raise ExperimentError(
                f"these embeddings have no {modality} (only {', '.join(embeddings.dims) or 'none'}), which the "
                "head reads: extract it, or use a head of the other modality alone"
            )
    if config.settings.absent == "zeros":  # all but clips that have no embedding at all
        return np.logical_or.reduce([embeddings.present(modality) for modality in embeddings.dims])
    return np.logical_and.reduce([embeddings.present(modality) for modality in config.modalities])
