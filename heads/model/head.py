"""The fusion head: embeddings of a clip's modalities in, one logit per class out.

    {modality: (batch, dim)} -> transform -> normalisation -> fusion
        -> FC 1024 -> ReLU -> dropout -> FC 512 -> ReLU -> dropout -> FC C

With two 768-d encoders and 91 classes that is 1536-1024-512-91 with 2,145,371 parameters (paper section 3; the widths
and the dropout are the authors' notebook's; neither normalises).

Normalisation comes after the transform: a transform that only scales (pos-scalar, neg-scalar, scale) vanishes under it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn
from torch.nn import functional

from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.data.streams import MODALITIES
from alphafuse.errors import DatasetError, ExperimentError, unknown
from alphafuse.system.files import read_json, write_atomically, write_json

from .fusion import build_fusion, check_fusion
from .transforms import TRANSFORMS, AlphaTransform, check_transform

FORMAT_VERSION = 1
HIDDEN = (1024, 512)  # authors' notebook
DROPOUT = 0.5  # authors' notebook, after each of the two hidden layers
BOTH = "both"
FUSED = "fused"  # in `HeadConfig.auxiliary`: the loss of the head itself
ABSENT = ("drop", "zeros")
NORMALIZATIONS = ("none", "zscore", "l2")
PREDICT_ROWS = 4096  # rows per step of prediction: bounds memory, changes no number
# and at least so many, filled up with zeros: MKL takes a row alone, or a few (on an AMD EPYC up to two, with two
# threads up to five), through kernels that round otherwise, and a clip's answer would depend on those beside it
PREDICT_ROWS_LEAST = 32


@dataclass(frozen=True)
class HeadConfig:
    """Everything that decides a head's shape and function, apart from its weights.

    Attributes:
        dims: modality -> dimension of its embeddings, for the modalities that the head reads (one or both).
        classes: labels in the order of the logits.
        transform, alpha: entry of `TRANSFORMS` and its alpha where it takes one.
        on: the modality that is transformed, "both", or None with transform "none".
        fusion: entry of `FUSIONS`.
        hidden: widths of the hidden layers; () is a linear head.
        dropout: probability in [0, 1), after each hidden layer, while training.
        normalize: what each modality's embeddings go through after the transform: "none"; "zscore", (x - mean) / std
            per dimension over the training clips; "l2", `x / |x|`.
        modality_dropout: probability in [0, 1) that a training clip loses one of its two modalities, chosen by lot, at
            a step: with `absent="zeros"`, one head then serves clips that lack either (Neverova et al. 2016).
        rates: modality -> its own learning rate, as a multiple of the common one, for its columns of the first layer;
            the control that alpha is compared with. Needs concat.
        auxiliary: modality (and "fused") -> weight of its loss: each modality's expert of fusion `gate` gets a linear
            classifier of its own while training (gradient blending, Wang et al. 2020).
        absent: what becomes of a clip that lacks a modality which the head reads: "drop" leaves it out (its
            predictions are NaN), "zeros" puts zeros in the place of what the absent embedding would be fused as.

    Raises:
        ExperimentError: a value that doesn't exist or doesn't fit.

    >>> from alphafuse import HeadConfig
    >>> config = HeadConfig({"timesformer": 768, "ast": 768}, ("bark", "meow"), "scale", "ast", alpha=0.5)
    >>> config.transformed, config.hidden
    (('ast',), (1024, 512))
    """

    dims: Mapping[str, int]
    classes: tuple[str, ...]
    transform: str = "none"
    on: str | None = None
    alpha: float | None = None
    fusion: str = "concat"
    hidden: tuple[int, ...] = HIDDEN
    dropout: float = DROPOUT
    absent: Literal["drop", "zeros"] = "drop"
    normalize: Literal["none", "zscore", "l2"] = "none"
    modality_dropout: float = 0.0
    rates: Mapping[str, float] | None = None
    auxiliary: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name in ("classes", "hidden"):  # json has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.dims:
            raise ExperimentError(f"a head needs at least one modality: {', '.join(MODALITIES)}")
        for modality, dim in self.dims.items():
            if modality not in MODALITIES:
                raise ExperimentError(unknown("modality", modality, MODALITIES))
            _require_count(f"dimension of {modality}", dim)
        check_transform(self.transform, self.alpha)
        check_target(self.transform, self.on, self.modalities)
        check_fusion(self.fusion, self.modalities)
        for width in self.hidden:
            _require_count("hidden width", width)
        for name in ("dropout", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ExperimentError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ExperimentError(f"a head needs at least two classes, all different, not {len(self.classes)}")
        if self.absent not in ABSENT:
            raise ExperimentError(unknown("treatment of absent embeddings", self.absent, ABSENT))
        if self.normalize not in NORMALIZATIONS:
            raise ExperimentError(unknown("normalisation", self.normalize, NORMALIZATIONS))
        check_controls(self.fusion, self.rates, self.auxiliary, self.modalities)
        check_normalization(self.normalize, self.transform)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the head reads, in the order of `MODALITIES`."""
        return tuple(modality for modality in MODALITIES if modality in self.dims)

    @property
    def transformed(self) -> tuple[str, ...]:
        """The modalities that the transform changes."""
        return self.modalities if self.on == BOTH else tuple(m for m in self.modalities if m == self.on)

    def describe(self) -> str:
        """A few words that tell this head from others, for messages."""
        alpha = "" if self.alpha is None else f" (alpha {self.alpha:g})"
        transformed = f"{self.transform}{alpha} on {self.on}" if self.on else "untransformed"
        what = f"{transformed}, {self.fusion} of {' and '.join(self.modalities)}"
        return what if self.normalize == "none" else f"{what}, {self.normalize}"

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return {**asdict(self), "classes": list(self.classes), "hidden": list(self.hidden)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HeadConfig:
        """The inverse of `to_json`; `ExperimentError` for a field that is absent or unknown."""
        names = [field.name for field in fields(cls)]
        strange = [name for name in content if name not in names]
        if strange:
            raise ExperimentError(unknown("field", strange[0], names))
        absent = [name for name in ("dims", "classes") if name not in content]
        if absent:
            raise ExperimentError(f"'{absent[0]}' is missing")
        return cls(**content)


def check_target(transform: str, on: str | None, modalities: tuple[str, ...]) -> None:
    """Raise `ExperimentError` unless `on` is something that the transform can be applied to."""
    if on is None:
        if transform != "none":
            raise ExperimentError(f"transform '{transform}' needs a modality: --on {'|'.join(modalities)}")
        return
    if on not in (*MODALITIES, BOTH):
        raise ExperimentError(unknown("modality", on, (*MODALITIES, BOTH)))
    if on not in modalities and not (on == BOTH and len(modalities) > 1):
        raise ExperimentError(f"the transform is on '{on}', but the head reads only {' and '.join(modalities)}")


def check_alphas(alphas: Mapping[str, float] | None, modalities: Sequence[str]) -> None:
    """Raise `ExperimentError` unless each is a finite factor on a modality that the head reads."""
    for modality, alpha in (alphas or {}).items():
        if modality not in modalities:
            raise ExperimentError(unknown("modality", modality, modalities))
        if not math.isfinite(alpha):
            raise ExperimentError(f"the alpha of {modality} must be a finite number, not {alpha}")


def check_normalization(normalize: str, transform: str) -> None:
    """Raise `ExperimentError` for a normalisation that needs what training only learns."""
    if normalize == "zscore" and TRANSFORMS[transform].learns:
        raise ExperimentError(
            f"transform '{transform}' learns its alpha, and zscore needs the mean and deviation of what comes out of "
            "it before training: use --normalize none"
        )


def check_controls(
    fusion: str, rates: Mapping[str, float] | None, auxiliary: Mapping[str, float] | None, modalities: tuple[str, ...]
) -> None:
    """Raise `ExperimentError` unless learning rates per modality and auxiliary losses fit the rest of the head."""
    for modality, rate in (rates or {}).items():
        if modality not in modalities:
            raise ExperimentError(unknown("modality", modality, modalities))
        if not (math.isfinite(rate) and rate > 0):
            raise ExperimentError(f"the learning rate of {modality} must be above 0, not {rate}")
    if rates and fusion != "concat":
        raise ExperimentError(f"learning rates per modality need fusion 'concat', not '{fusion}'")
    for name, weight in (auxiliary or {}).items():
        if name not in (*modalities, FUSED):
            raise ExperimentError(unknown("auxiliary loss", name, (*modalities, FUSED)))
        if not (math.isfinite(weight) and weight >= 0):
            raise ExperimentError(f"the weight of the {name} loss must be 0 or more, not {weight}")
    if auxiliary and fusion != "gate":
        raise ExperimentError(f"auxiliary losses need fusion 'gate', which has an expert per modality, not '{fusion}'")


def _require_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ExperimentError(f"{name} must be a whole number of at least 1, not {value!r}")


class AlphaFusion(nn.Module):
    """The head of a `HeadConfig`.

    Initial weights are PyTorch's defaults for linear layers (uniform within 1 / sqrt(fan-in)), drawn from
    `generator`, so that they depend on nothing else.

    >>> import torch
    >>> from alphafuse import AlphaFusion, HeadConfig
    >>> config = HeadConfig(dims={"timesformer": 768, "ast": 768}, classes=("bark", "meow"))
    >>> AlphaFusion(config)({"timesformer": torch.zeros(5, 768), "ast": torch.zeros(5, 768)}).shape
    torch.Size([5, 2])
    """

    def __init__(self, config: HeadConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.transforms = nn.ModuleDict(
            {
                modality: AlphaTransform(config.transform, config.alpha, config.dims[modality])
                if modality in config.transformed
                else AlphaTransform()
                for modality in config.modalities
            }
        )
        self.normalizations = nn.ModuleDict(
            {modality: Normalization(config.normalize, config.dims[modality]) for modality in config.modalities}
        )
        self.fusion = build_fusion(config.fusion, config.dims)
        widths = (self.fusion.output_dim, *config.hidden, len(config.classes))
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, inputs, outputs) for inputs, outputs in pairwise(widths)
        )
        self.reset_parameters(generator or torch.Generator().manual_seed(0))

    @property
    def linears(self) -> list[nn.Linear]:
        """The fully connected layers in order."""
        return [cast(nn.Linear, layer) for layer in self.layers]

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all initial parameters from the generator."""
        for transform in self.transforms.values():
            cast(AlphaTransform, transform).reset_parameters()
        self.fusion.reset_parameters(generator)
        for layer in self.linears:
            bound = 1 / math.sqrt(layer.in_features)  # nn.Linear.reset_parameters: kaiming_uniform_ with a = sqrt(5)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    def prepare(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{modality: (batch, dim)}, rows of NaN where absent -> the same, transformed and normalised, absent ones 0."""
        prepared = {}
        for modality in self.config.modalities:
            x = features[modality]
            absent = torch.isnan(x).any(dim=-1, keepdim=True)  # (batch, 1)
            x = self.transforms[modality](x.masked_fill(absent, 0))
            prepared[modality] = self.normalizations[modality](x).masked_fill(absent, 0)
        return prepared

    def fuse(self, features: Mapping[str, torch.Tensor], alphas: Mapping[str, float] | None = None) -> torch.Tensor:
        """{modality: (batch, dim)} -> (batch, fused dim): everything before the layers; alphas as in `forward`."""
        prepared = self.prepare(features)
        for modality, alpha in (alphas or {}).items():
            prepared[modality] = alpha * prepared[modality]
        return self.fusion(prepared)

    def classify(self, fused: torch.Tensor) -> torch.Tensor:
        """(batch, fused dim) -> logits (batch, C): the fully connected layers."""
        *hidden, last = self.linears
        x = fused
        for layer in hidden:
            x = functional.dropout(
                torch.relu(layer(x)), self.config.dropout, self.training
            )  # (batch, 1024), (batch, 512)
        return last(x)

    def forward(self, features: Mapping[str, torch.Tensor], alphas: Mapping[str, float] | None = None) -> torch.Tensor:
        """Embeddings -> logits (batch, C) float32.

        Args:
            features: {modality: (batch, dim) float32}; a row of NaN is an absent embedding.
            alphas: modality -> factor on what is fused of it, after transform and normalisation: 1 (or not named) is
                the head as it was trained, 0 as if the modality were absent. Any finite number.

        Raises:
            ExperimentError: a modality is missing or has another dimension, or an alpha is for one that isn't read.
        """
        check_alphas(alphas, self.config.modalities)
        for modality, dim in self.config.dims.items():
            if modality not in features:
                raise ExperimentError(f"this head reads {modality}, which isn't among {', '.join(features) or 'none'}")
            if features[modality].shape[-1] != dim:
                raise ExperimentError(
                    f"this head was made for {dim}-d {modality} embeddings, not {features[modality].shape[-1]}-d ones: "
                    "extract with the encoder it was trained on"
                )
        return self.classify(self.fuse(features, alphas))

    @torch.no_grad()
    def predict_logits(self, embeddings: EmbeddingSource, alphas: Mapping[str, float] | None = None) -> np.ndarray:
        """Logits (clips, C) float32, without dropout; NaN rows where the head drops clips that lack a modality.

        `alphas` as in `forward`.
        """
        order = embeddings.storage_order()
        order = order[usable_clips(embeddings, self.config)[order]]
        was_training = self.training
        self.eval()
        logits = np.full((len(embeddings), len(self.config.classes)), np.nan, np.float32)
        for start in range(0, len(order), PREDICT_ROWS):
            rows = order[start : start + PREDICT_ROWS]
            logits[rows] = self.logits_of(embeddings.read_rows(rows), alphas)
        self.train(was_training)
        return logits

    @torch.no_grad()
    def logits_of(self, features: Mapping[str, np.ndarray], alphas: Mapping[str, float] | None = None) -> np.ndarray:
        """A step of prediction: `forward` of rows in memory, (clips, dim) float32 each -> logits (clips, C) float32.

        On the CPU what a row gives doesn't depend on the rows beside it.
        """
        device = self.linears[0].weight.device
        filled = {}
        for name in self.config.modalities:
            clips, dim = features[name].shape
            rows = torch.zeros(max(clips, PREDICT_ROWS_LEAST), dim)
            rows[:clips] = torch.from_numpy(features[name])
            filled[name] = rows.to(device)
        return self(filled, alphas)[:clips].cpu().numpy()

    def predict_proba(self, embeddings: EmbeddingSource, alphas: Mapping[str, float] | None = None) -> np.ndarray:
        """Class probabilities (clips, C) float32 in [0, 1], rows summing to 1; NaN rows as in `predict_logits`."""
        return torch.from_numpy(self.predict_logits(embeddings, alphas)).softmax(dim=1).numpy()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, then config.json: a head is there once its config.json is."""
        folder = Path(folder)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_atomically(folder / "model.safetensors", save_safetensors(weights, {"format": "pt"}))
        write_json(folder / "config.json", {"format_version": FORMAT_VERSION, "head": self.config.to_json()})

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> AlphaFusion:
        """Load a head from a run folder or from its head/ folder, in eval mode on the CPU.

        Raises:
            ExperimentError: no head there, a damaged file, or weights that don't fit the config.
        """
        folder = Path(folder)
        if (folder / "head").is_dir():
            folder = folder / "head"
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise ExperimentError(
                f"no head in {folder} (config.json and model.safetensors): train one with `alphafuse fit`, or name a "
                "run folder under <root>/runs/"
            )
        try:
            content = read_json(folder / "config.json")
            if content.get("format_version") != FORMAT_VERSION or "head" not in content:
                raise ExperimentError(f"it isn't a head's config of format version {FORMAT_VERSION}")
            head = cls(HeadConfig.from_json(content["head"]))
            weights = load_safetensors((folder / "model.safetensors").read_bytes())
            _require_fit(head, weights)
        except (DatasetError, ExperimentError, SafetensorError, OSError, TypeError) as error:
            raise ExperimentError(f"the head in {folder} can't be used: {error}: train it again") from None
        head.load_state_dict(weights)
        return head.eval()


def _require_fit(head: AlphaFusion, weights: Mapping[str, torch.Tensor]) -> None:
    expected = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise ExperimentError(
                f"model.safetensors holds {name} {found.get(name, 'not at all')}, config.json asks for "
                f"{expected.get(name, 'none')}"
            )


class Normalization(nn.Module):
    """Normalisation of one modality's transformed embeddings, (batch, dim) -> (batch, dim).

    Args:
        kind: "none": x; "zscore": (x - mean) / std, whose buffers `mean` and `std` (dim,) are part of the head's state
            and are set from the training clips (1 where a dimension is constant); "l2": x / |x|, 0 for x = 0.
        dim: of the embeddings.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "zscore":
            self.register_buffer("mean", torch.zeros(dim))
            self.register_buffer("std", torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise embeddings."""
        if self.kind == "zscore":
            return (x - self.mean) / self.std
        return functional.normalize(x, dim=-1) if self.kind == "l2" else x

    def extra_repr(self) -> str:
        """The kind, shown when the head is printed."""
        return self.kind


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
    if config.absent == "zeros":  # a clip without any embedding is no clip
        return np.logical_or.reduce([embeddings.present(modality) for modality in embeddings.dims])
    return np.logical_and.reduce([embeddings.present(modality) for modality in config.modalities])
