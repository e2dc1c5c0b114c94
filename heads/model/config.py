"""The configuration of a head, as plain values; each field and each check is defined here once.

    Experiment      streams, transform and fusion; they differ between the heads of a study
    HeadSettings    the rest of the head: hidden layers, dropout, normalisation, absent embeddings
    HeadConfig      everything that determines a head's shape and function: dimensions, classes, both of the above

Loads no torch. The command line generates its options from the fields that have a `help`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from alphafuse.data.streams import ALL, DEFAULT_NAMES, in_order, names_of, require_name, title_of
from alphafuse.errors import DatasetError, ExperimentError, unknown

from .checks import check_choice, check_count, check_share, from_fields, pick
from .transforms import NOTEBOOK_POS_SCALAR, TRANSFORMS, check_transform

if TYPE_CHECKING:
    from alphafuse.data.store.lazy import EmbeddingSource

FUSED = "fused"  # key of `Experiment.auxiliary` for the loss of the head itself
FUSIONS = ("concat", "add", "matrix", "gate", "attention")  # their layers: `fusion.LAYERS`

Normalize = Literal["none", "zscore", "variance", "l2"]
MEASURED = ("zscore", "variance")  # normalisations by moments of the training clips
Absent = Literal["drop", "zeros"]


def check_fusion(name: str, streams: Sequence[str]) -> None:
    """Raise `ExperimentError` if the fusion doesn't exist, or joins streams and there is only one."""
    check_choice("fusion", name, FUSIONS)
    if name != "concat" and len(streams) < 2:
        raise ExperimentError(
            f"fusion '{name}' joins streams, but the head reads only {', '.join(streams)}: use concat"
        )


def title_of_streams(names: str) -> str:
    """Return the title of a stream, of several separated by commas, or of "all".

    >>> title_of_streams("timesformer,ast")
    'TimeSformer + AST'
    """
    return " + ".join(title_of(name) for name in names.split(","))


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return different names of streams, in order; () if "all" is among them; a text is split at its commas.

    Raises:
        ExperimentError: a name that no stream can have.
    """
    try:
        different = names_of(names, {})
        for name in different:
            require_name(name)
    except DatasetError as error:
        raise ExperimentError(str(error)) from None
    return different


@dataclass(frozen=True)
class Experiment:
    """An experiment: the streams that a head fuses, the transform, the fusion, and variants of the training.

    It can be written before it is known which streams there are. `of` completes it for the streams of some embeddings;
    fit, sweep and the other studies do so, and their results have completed experiments.

    Attributes:
        transform: name of an entry of `TRANSFORMS`.
        on: what is transformed: a stream, several separated by commas ("ast,clap"), "all" that the head reads, or None
            with transform "none".
        alpha: parameter of the transforms that take one.
        fusion: one of `FUSIONS`.
        streams: the streams that the head reads, in the order of `in_order`; () is all that the embeddings have. One
            text is accepted ("ast", "ast,clap"). Studies read "sight" and "sound", here and in `on`, as the streams of
            video and of audio.
        normalize: normalisation that overrides the settings'; None uses theirs (see `HeadSettings.normalize`).
        rates: pairs (stream, factor on the learning rate) for the stream's columns of the first layer; the
            control for alpha. Needs fusion concat. A mapping is accepted.
        auxiliary: pairs (stream or "fused", weight of its loss): during training each stream's expert of fusion
            `gate` gets a linear classifier of its own (gradient blending, Wang et al. 2020). A mapping is accepted.
        available: the streams of the embeddings, in order, once `of` has completed the experiment; () before. Only
            names and titles depend on it: a head that reads all available streams isn't named after them.

    Raises:
        ExperimentError: an unknown name, or fields that contradict each other. What depends on the streams that there
            are is found by `of`.

    >>> from alphafuse import Experiment
    >>> Experiment("sqrt", on="ast").name
    'sqrt-ast'
    >>> Experiment(streams=("ast",)).title
    'AST only'
    >>> Experiment("sqrt", on="all").of(["timesformer", "ast", "clap"]).transformed
    ('timesformer', 'ast', 'clap')
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
            "help": "Apply the transform to a stream, to several (NAME,NAME) or to all.",
            "choices": (*DEFAULT_NAMES, ALL),  # only what completion offers
        },
    )
    alpha: float | None = field(default=None, metadata={"help": "For scale and power; optional for tanh and learned."})
    fusion: str = field(
        default="concat", metadata={"help": "concat, add, matrix, gate or attention.", "choices": FUSIONS}
    )
    streams: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Streams that the head reads, separated by commas. [default: all]",
            "flags": ("--stream",),
            "multiple": True,
            "choices": DEFAULT_NAMES,
        },
    )
    normalize: Normalize | None = None
    rates: tuple[tuple[str, float], ...] = ()
    auxiliary: tuple[tuple[str, float], ...] = ()
    available: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", _ordered(self.streams))
        object.__setattr__(self, "available", _ordered(self.available))
        check_transform(self.transform, self.alpha)
        self._check_on()
        check_choice("fusion", self.fusion, FUSIONS)
        if self.streams:
            check_fusion(self.fusion, self.streams)
        if self.normalize is not None:
            check_choice("normalisation", self.normalize, get_args(Normalize))
        for name in ("rates", "auxiliary"):
            pairs = dict(getattr(self, name) or ())
            object.__setattr__(self, name, tuple(sorted((key, float(value)) for key, value in pairs.items())))
        self._check_rates()
        self._check_auxiliary()

    def of(self, available: Iterable[str]) -> Experiment:
        """Return the experiment for embeddings of these streams: the streams that it reads are filled in.

        Raises:
            ExperimentError: it names a stream that isn't among them, or joins streams and there is only one.
        """
        names = tuple(in_order(available))
        for stream in (*self.streams, *self._named_on):
            if stream not in names:
                raise ExperimentError(unknown("stream", stream, names))
        return replace(self, streams=self.streams or names, available=names)

    def with_senses(self, media: Mapping[str, str]) -> Experiment:
        """Return the experiment with "sight" and "sound" replaced by the streams of video and of audio.

        Args:
            media: stream -> medium, of the streams that there are.
        """
        on = ",".join(names_of(self.on, media)) or ALL if self.on else None
        return replace(self, streams=names_of(self.streams, media), on=on)

    @property
    def _named_on(self) -> tuple[str, ...]:
        """The streams that `on` names one by one; () for "all"."""
        return () if self.on in (None, ALL) else tuple(str(self.on).split(","))

    def _check_on(self) -> None:
        if self.on is None:
            if self.transform != "none":
                choices = "|".join(self.streams) or f"NAME[,NAME] or --on {ALL}"
                raise ExperimentError(f"transform '{self.transform}' needs a stream: --on {choices}")
            return
        names = _ordered(self.on)
        for name in names if self.streams else ():
            if name not in self.streams:
                raise ExperimentError(f"the transform is on '{name}', but the head reads only {_listed(self.streams)}")
        is_all = not names or (len(names) > 1 and names == self.streams)
        if is_all and len(self.streams) == 1:
            names, is_all = self.streams, False
        # none on one stream = none on another
        on = None if self.transform == "none" else ALL if is_all else ",".join(names)
        object.__setattr__(self, "on", on)

    def _check_rates(self) -> None:
        for stream, rate in self.rates:
            if self.streams:
                check_choice("stream", stream, self.streams)
            if not (math.isfinite(rate) and rate > 0):
                raise ExperimentError(f"the learning rate of {stream} must be above 0, not {rate}")
        if self.rates and self.fusion != "concat":
            raise ExperimentError(f"learning rates per stream need fusion 'concat', not '{self.fusion}'")

    def _check_auxiliary(self) -> None:
        for name, weight in self.auxiliary:
            if self.streams:
                check_choice("auxiliary loss", name, (*self.streams, FUSED))
            if not (math.isfinite(weight) and weight >= 0):
                raise ExperimentError(f"the weight of the {name} loss must be 0 or more, not {weight}")
        if self.auxiliary and self.fusion != "gate":
            raise ExperimentError(
                f"auxiliary losses need fusion 'gate', which has an expert per stream, not '{self.fusion}'"
            )

    @property
    def transformed(self) -> tuple[str, ...]:
        """The streams that the transform changes; with "all", those that the head reads."""
        return self.streams if self.on == ALL else self._named_on

    @property
    def learns(self) -> bool:
        """Whether the transform or the fusion has trainable parameters."""
        return self.fusion != "concat" or TRANSFORMS[self.transform].learns

    @property
    def reads_all(self) -> bool:
        """Whether the head reads all streams that the embeddings have."""
        return self.streams in ((), self.available)

    @property
    def name(self) -> str:
        """Short name for a run's folder: "sqrt-ast", "scale-0.5-timesformer", "untransformed", "ast-only", "gate".

        A head of some of the streams is named after them: "ast+clap".
        """
        picked = "" if self.reads_all else "+".join(self.streams) + ("-only" if len(self.streams) == 1 else "")
        parts = [self.transform, "" if self.alpha is None else f"{self.alpha:g}", (self.on or "").replace(",", "+")]
        others = [*self._variants, *(f"rate-{rate:g}-{stream}" for stream, rate in self.rates)]
        others += ["blended"] if self.auxiliary else []
        if self.transform == "none":
            parts = [] if picked or others else ["untransformed"]
        return "-".join(part for part in (*parts, picked, *others) if part)

    @property
    def title(self) -> str:
        """Title for a row of a table: "AST sqrt", "untransformed", "AST only", "AST + clap", "gate"."""
        alpha = "" if self.alpha is None else f" {self.alpha:g}"
        parts = [] if self.reads_all else [title_of_streams(",".join(self.streams))]
        if parts and len(self.streams) == 1:
            parts = [f"{parts[0]} only"]
            parts = parts if self.transform == "none" else [f"{parts[0]} {self.transform}{alpha}"]
        elif self.transform != "none":
            parts.append(f"{title_of_streams(str(self.on))} {self.transform}{alpha}")
        parts += [*self._variants, *(f"rate {rate:g} {stream}" for stream, rate in self.rates)]
        return ", ".join(parts + (["blended"] if self.auxiliary else [])) or "untransformed"

    @property
    def _variants(self) -> list[str]:
        """Fusion and normalisation, if they aren't the paper's."""
        parts = [] if self.fusion == "concat" else [self.fusion]
        return parts if self.normalize in (None, "none") else [*parts, str(self.normalize)]

    def head_config(self, train: EmbeddingSource, classes: Sequence[str], settings: HeadSettings) -> HeadConfig:
        """Return the head's configuration for these embeddings; `ExperimentError` if they lack a stream.

        `pos-scalar` is 1.5 as in the paper, or 2 as in its authors' code for embeddings of protocol `notebook`.
        """
        experiment = self.of(train.dims)
        if self.transform == "pos-scalar" and is_notebook(train.recipes):
            experiment = replace(experiment, transform="scale", alpha=NOTEBOOK_POS_SCALAR)
        return HeadConfig(train.dims, tuple(classes), experiment, settings)


def _listed(names: Iterable[str]) -> str:
    """Return names as read aloud: "a and b"."""
    return " and ".join(names)


def is_notebook(recipes: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a store's recipes say that its embeddings were made by protocol `notebook`."""
    return any(recipe.get("protocol") == "notebook" for recipe in recipes.values())


BASELINE = Experiment()


@dataclass(frozen=True)
class HeadSettings:
    """Settings of a head apart from its experiment: layers, dropout, normalisation, absent embeddings.

    The defaults are the paper's.

    Attributes:
        hidden: widths of the hidden layers; () is a linear head.
        dropout: probability in [0, 1), after each hidden layer, during training.
        modality_dropout: probability in [0, 1) that a training clip loses one of its streams in a step, each of them
            with the same probability; a clip that lacks a stream anyway loses none. With `absent="zeros"`, one head
            then serves clips that lack any one of them (Neverova et al. 2016). Heads of one stream ignore it.
        normalize: normalisation of each stream's embeddings after the transform: "none"; "zscore", (x - mean) / std
            per dimension over the training clips; "variance", (x - mean) / s with one s per stream, so that all streams
            have the same total variance and a dimension's is 1 on average; "l2", ``x / |x|``.
        absent: treatment of a clip that lacks a stream which the head reads: "drop" leaves the clip out (its
            predictions are NaN), "zeros" fuses zeros in place of the absent embedding.

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
    dropout: float = field(default=0.5, metadata={"help": "Dropout after each hidden layer."})  # authors' notebook
    modality_dropout: float = field(default=0.0, metadata={"help": "Share of clips that lose a stream."})
    normalize: Normalize = field(
        default="none",
        metadata={
            "help": "Normalise after the transform (none, zscore, variance, l2): scalar alphas then change nothing."
        },
    )
    absent: Absent = field(default="drop", metadata={"help": "Clips that lack a stream: drop or zeros."})

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
    """Everything that determines a head's shape and function, apart from its weights.

    Attributes:
        dims: stream -> dimension of its embeddings, in order; those that the experiment doesn't read are left out.
        classes: labels in the order of the logits.
        experiment: streams, transform and fusion, completed by `Experiment.of` for the streams of `dims`.
        settings: hidden layers and the rest; of a subclass of `HeadSettings`, only `HeadSettings`' own fields are kept.

    Raises:
        ExperimentError: dimensions, classes or fields that contradict each other.

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
        if not self.dims:
            raise ExperimentError("a head needs at least one stream")
        experiment = self.experiment if self.experiment.available else self.experiment.of(self.dims)
        for stream in experiment.streams:
            if stream not in self.dims:
                raise ExperimentError(f"the experiment reads {stream}, and only {_listed(self.dims)} has a dimension")
        dims = {stream: self.dims[stream] for stream in experiment.streams}
        object.__setattr__(self, "experiment", experiment)
        for stream, dim in dims.items():
            check_count(f"dimension of {stream}", dim)
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "settings", HeadSettings(**pick(HeadSettings, vars(self.settings))))
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ExperimentError(f"a head needs at least two classes, all different, not {len(self.classes)}")
        if self.normalize in MEASURED and TRANSFORMS[self.experiment.transform].learns:
            raise ExperimentError(
                f"transform '{self.experiment.transform}' learns its alpha, but {self.normalize} needs the mean and "
                "standard deviation of the transform's output before training: use --normalize none"
            )

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that the head reads, in order."""
        return self.experiment.streams

    @property
    def normalize(self) -> Normalize:
        """The experiment's normalisation, or else the settings'."""
        return self.experiment.normalize or self.settings.normalize

    @property
    def preparation(self) -> tuple[object, ...]:
        """Key of the transformed and normalised embeddings: equal for heads that prepare them in the same way."""
        experiment = self.experiment
        return self.streams, experiment.transform, experiment.alpha, experiment.on, self.normalize

    def describe(self) -> str:
        """A short description of this head, for messages."""
        experiment = self.experiment
        alpha = "" if experiment.alpha is None else f" (alpha {experiment.alpha:g})"
        transformed = f"{experiment.transform}{alpha} on {experiment.on}" if experiment.on else "untransformed"
        description = f"{transformed}, {experiment.fusion} of {_listed(self.streams)}"
        return description if self.normalize == "none" else f"{description}, {self.normalize}"

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
    """Return which clips this head can train on or predict: (clips,) bool.

    Raises:
        ExperimentError: no clip has an embedding of a stream that the head reads.
    """
    for stream in config.streams:
        if stream not in embeddings.dims:
            raise ExperimentError(
                f"these embeddings have no {stream} (only {', '.join(embeddings.dims) or 'none'}), which the "
                "head reads: extract it, or use a head of other streams"
            )
    if config.settings.absent == "zeros":  # all clips that have at least one embedding
        return np.logical_or.reduce([embeddings.present(stream) for stream in embeddings.dims])
    return np.logical_and.reduce([embeddings.present(stream) for stream in config.streams])
