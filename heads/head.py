"""The fusion head: embeddings of a clip's modalities in, one logit per class out.

    {modality: (batch, dim)} -> transform -> fusion -> FC 1024 -> ReLU -> dropout -> FC 512 -> ReLU -> dropout -> FC C

With two 768-d backbones and 91 classes that is 1536-1024-512-91 with 2,145,371 parameters (paper section 3; the widths
and the dropout are the authors' notebook's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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

from alphafuse.data.files import read_json, write_atomically, write_json
from alphafuse.data.store import MODALITIES, Embeddings
from alphafuse.errors import DatasetError, ExperimentError, unknown

from .fusion import FUSIONS, build_fusion
from .transforms import AlphaTransform, check_transform

FORMAT_VERSION = 1
HIDDEN = (1024, 512)  # authors' notebook
DROPOUT = 0.5  # authors' notebook, after each of the two hidden layers
BOTH = "both"
ABSENT = ("drop", "zeros")
PREDICT_ROWS = 4096  # rows per step of prediction: bounds memory, changes no number


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
        absent: what becomes of a clip that lacks a modality which the head reads: "drop" leaves it out (its
            predictions are NaN), "zeros" puts zeros in the place of the absent embedding.

    Raises:
        ExperimentError: a value that doesn't exist or doesn't fit.
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
        if self.fusion not in FUSIONS:
            raise ExperimentError(unknown("fusion", self.fusion, FUSIONS))
        for width in self.hidden:
            _require_count("hidden width", width)
        if not 0 <= self.dropout < 1:
            raise ExperimentError(f"dropout must be in [0, 1), not {self.dropout}")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ExperimentError(f"a head needs at least two classes, all different, not {len(self.classes)}")
        if self.absent not in ABSENT:
            raise ExperimentError(unknown("treatment of absent embeddings", self.absent, ABSENT))

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
        return f"{self.transform}{alpha} on {self.on or 'nothing'}, {self.fusion} of {' and '.join(self.modalities)}"

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return {**asdict(self), "dims": dict(self.dims), "classes": list(self.classes), "hidden": list(self.hidden)}

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


def _require_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ExperimentError(f"{name} must be a whole number of at least 1, not {value!r}")


class AlphaFusion(nn.Module):
    """The head of a `HeadConfig`.

    Initial weights are PyTorch's defaults for linear layers (uniform within 1 / sqrt(fan-in)), drawn from
    `generator`, so that they depend on nothing else.

    >>> config = HeadConfig(dims={"timesformer": 768, "ast": 768}, classes=("bark", "meow"))
    >>> AlphaFusion(config)({"timesformer": torch.zeros(5, 768), "ast": torch.zeros(5, 768)}).shape
    torch.Size([5, 2])
    """

    def __init__(self, config: HeadConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.transforms = nn.ModuleDict(
            {
                modality: AlphaTransform(config.transform, config.alpha)
                if modality in config.transformed
                else AlphaTransform()
                for modality in config.modalities
            }
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

    def fuse(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{modality: (batch, dim)} -> (batch, fused dim): transforms and fusion, everything before the layers."""
        transformed = {name: self.transforms[name](features[name]) for name in self.config.modalities}
        return self.fusion(transformed)

    def classify(self, fused: torch.Tensor) -> torch.Tensor:
        """(batch, fused dim) -> logits (batch, C): the fully connected layers."""
        *hidden, last = self.linears
        x = fused
        for layer in hidden:
            x = functional.dropout(
                torch.relu(layer(x)), self.config.dropout, self.training
            )  # (batch, 1024), (batch, 512)
        return last(x)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{modality: (batch, dim) float32} -> logits (batch, C) float32.

        Raises:
            ExperimentError: a modality is missing or has another dimension.
        """
        for modality, dim in self.config.dims.items():
            if modality not in features:
                raise ExperimentError(f"this head reads {modality}, which isn't among {', '.join(features) or 'none'}")
            if features[modality].shape[-1] != dim:
                raise ExperimentError(
                    f"this head was made for {dim}-d {modality} embeddings, not {features[modality].shape[-1]}-d ones: "
                    "extract with the backbone it was trained on"
                )
        return self.classify(self.fuse(features))

    @torch.no_grad()
    def predict_logits(self, embeddings: Embeddings) -> np.ndarray:
        """Logits (clips, C) float32, without dropout; NaN rows where the head drops clips that lack a modality."""
        usable = usable_clips(embeddings, self.config)
        inputs = head_inputs(embeddings.take(usable), self.config)
        device = self.linears[0].weight.device
        was_training = self.training
        self.eval()
        logits = np.full((len(embeddings), len(self.config.classes)), np.nan, np.float32)
        chunks = []
        for start in range(0, int(usable.sum()), PREDICT_ROWS):
            chunk = {name: matrix[start : start + PREDICT_ROWS].to(device) for name, matrix in inputs.items()}
            chunks.append(self(chunk).cpu().numpy())
        if chunks:
            logits[usable] = np.concatenate(chunks)
        self.train(was_training)
        return logits

    def predict_proba(self, embeddings: Embeddings) -> np.ndarray:
        """Class probabilities (clips, C) float32 in [0, 1], rows summing to 1; NaN rows as in `predict_logits`."""
        return torch.from_numpy(self.predict_logits(embeddings)).softmax(dim=1).numpy()

    def save_pretrained(self, folder: Path) -> None:
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


def usable_clips(embeddings: Embeddings, config: HeadConfig) -> np.ndarray:
    """(clips,) bool: which clips this head can be trained on, or asked about.

    Raises:
        ExperimentError: the embeddings lack a modality altogether.
    """
    for modality in config.modalities:
        if modality not in embeddings.features:
            raise ExperimentError(
                f"these embeddings have no {modality} (only {', '.join(embeddings.features) or 'none'}), which the "
                "head reads: extract it, or use a head of the other modality alone"
            )
    if config.absent == "zeros":  # a clip without any embedding is no clip
        return np.logical_or.reduce([embeddings.present(modality) for modality in embeddings.features])
    return np.logical_and.reduce([embeddings.present(modality) for modality in config.modalities])


def head_inputs(embeddings: Embeddings, config: HeadConfig) -> dict[str, torch.Tensor]:
    """Modality -> (clips, dim) float32 tensor; absent embeddings as zeros."""
    inputs = {}
    for modality in config.modalities:
        matrix = np.array(
            embeddings.features[modality], dtype=np.float32
        )  # a copy: the store's arrays stay as they are
        matrix[~embeddings.present(modality)] = 0
        inputs[modality] = torch.from_numpy(matrix)
    return inputs
