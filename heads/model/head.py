"""The fusion head: maps the embeddings of a clip's streams to one logit per class.

    {stream: (batch, dim)} -> transform -> normalisation -> fusion
        -> FC 1024 -> ReLU -> dropout -> FC 512 -> ReLU -> dropout -> FC C

With two 768-d encoders and 91 classes the layers are 1536-1024-512-91 with 2,145,371 parameters (paper section 3;
widths and dropout from the authors' notebook; neither paper nor notebook normalises).

Normalisation comes after the transform. It cancels a transform that only scales (pos-scalar, neg-scalar, scale).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn
from torch.nn import functional

from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.errors import DatasetError, ExperimentError
from alphafuse.system.files import read_json, write_atomically, write_json

from .checks import check_choice
from .config import MEASURED, HeadConfig, usable_clips
from .fusion import build_fusion
from .transforms import check_transform

FORMAT_VERSION = 1
PREDICT_ROWS = 4096  # most rows per step of prediction: bounds memory, changes no number
# Smaller batches are padded with zeros to this size. MKL multiplies very few rows (on an AMD EPYC up to two, with two
# threads up to five) in kernels that round differently, so a clip's logits would depend on the size of its batch.
MIN_PREDICT_ROWS = 32


class AlphaFusion(nn.Module):
    """The fusion head that a `HeadConfig` describes.

    Initial weights follow PyTorch's default for linear layers (uniform within 1 / sqrt(fan-in)). They are drawn from
    `generator` alone.

    >>> import torch
    >>> from alphafuse import AlphaFusion, HeadConfig
    >>> config = HeadConfig({"timesformer": 768, "ast": 768}, classes=("bark", "meow"))
    >>> AlphaFusion(config)({"timesformer": torch.zeros(5, 768), "ast": torch.zeros(5, 768)}).shape
    torch.Size([5, 2])
    """

    def __init__(self, config: HeadConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        experiment = config.experiment
        self.transforms = nn.ModuleDict(
            {
                stream: AlphaTransform(experiment.transform, experiment.alpha, config.dims[stream])
                if stream in experiment.transformed
                else AlphaTransform()
                for stream in config.streams
            }
        )
        self.normalizations = nn.ModuleDict(
            {stream: Normalization(config.normalize, config.dims[stream]) for stream in config.streams}
        )
        self.fusion = build_fusion(experiment.fusion, config.dims)
        widths = (self.fusion.output_dim, *config.settings.hidden, len(config.classes))
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, inputs, outputs) for inputs, outputs in pairwise(widths)
        )
        self.reset_parameters(generator or torch.Generator().manual_seed(0))

    @property
    def linears(self) -> list[nn.Linear]:
        """The fully connected layers, in order."""
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
        """Transform and normalise {stream: (batch, dim)}; absent embeddings, rows of NaN, become zeros."""
        prepared = {}
        for stream in self.config.streams:
            x = features[stream]
            absent = torch.isnan(x).any(dim=-1, keepdim=True)  # (batch, 1)
            x = self.transforms[stream](x.masked_fill(absent, 0))
            prepared[stream] = self.normalizations[stream](x).masked_fill(absent, 0)
        return prepared

    def fuse(self, features: Mapping[str, torch.Tensor], alphas: Mapping[str, float] | None = None) -> torch.Tensor:
        """{stream: (batch, dim)} -> (batch, fused dim): everything before the layers; `alphas` as in `forward`."""
        prepared = self.prepare(features)
        for stream, alpha in (alphas or {}).items():
            prepared[stream] = alpha * prepared[stream]
        return self.fusion(prepared)

    def classify(self, fused: torch.Tensor) -> torch.Tensor:
        """(batch, fused dim) -> logits (batch, C): the fully connected layers."""
        *hidden, last = self.linears
        x = fused
        for layer in hidden:
            x = torch.relu(layer(x))  # (batch, 1024), (batch, 512)
            x = functional.dropout(x, self.config.settings.dropout, self.training)
        return last(x)

    def forward(self, features: Mapping[str, torch.Tensor], alphas: Mapping[str, float] | None = None) -> torch.Tensor:
        """Embeddings -> logits (batch, C) float32.

        Args:
            features: {stream: (batch, dim) float32}; a row of NaN is an absent embedding.
            alphas: stream -> finite factor on its vector after transform and normalisation. 1, the default, is the
                head as trained; 0 treats the stream as absent.

        Raises:
            ExperimentError: a stream is missing or has another dimension, or an alpha names one that isn't read.
        """
        check_alphas(alphas, self.config.streams)
        for stream, dim in self.config.dims.items():
            if stream not in features:
                raise ExperimentError(f"this head reads {stream}, which isn't among {', '.join(features) or 'none'}")
            if features[stream].shape[-1] != dim:
                raise ExperimentError(
                    f"this head was made for {dim}-d {stream} embeddings, not {features[stream].shape[-1]}-d ones: "
                    "extract with the encoder it was trained on"
                )
        return self.classify(self.fuse(features, alphas))

    @torch.no_grad()
    def predict_logits(self, embeddings: EmbeddingSource, alphas: Mapping[str, float] | None = None) -> np.ndarray:
        """Logits (clips, C) float32, without dropout; NaN rows where the head drops clips that lack a stream.

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
        """Run `forward` on arrays in memory: (clips, dim) float32 per stream -> logits (clips, C) float32.

        On the CPU a row's logits don't depend on the other rows.
        """
        device = self.linears[0].weight.device
        filled = {}
        for name in self.config.streams:
            clips, dim = features[name].shape
            rows = torch.zeros(max(clips, MIN_PREDICT_ROWS), dim)
            rows[:clips] = torch.from_numpy(features[name])
            filled[name] = rows.to(device)
        return self(filled, alphas)[:clips].cpu().numpy()

    def predict_proba(self, embeddings: EmbeddingSource, alphas: Mapping[str, float] | None = None) -> np.ndarray:
        """Class probabilities (clips, C) float32 in [0, 1], rows summing to 1; NaN rows as in `predict_logits`."""
        return torch.from_numpy(self.predict_logits(embeddings, alphas)).softmax(dim=1).numpy()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, then config.json: a folder with config.json holds a complete head."""
        folder = Path(folder)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_atomically(folder / "model.safetensors", save_safetensors(weights, {"format": "pt"}))
        write_json(folder / "config.json", {"format_version": FORMAT_VERSION, "head": self.config.to_json()})

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> AlphaFusion:
        """Load a head from a run folder or from its head/ folder, in eval mode on the CPU.

        Raises:
            ExperimentError: the folder has no head, a file is damaged, or the weights don't fit the config.
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
            _require_same_shapes(head, weights)
        except (DatasetError, ExperimentError, SafetensorError, OSError, TypeError) as error:
            raise ExperimentError(f"the head in {folder} can't be used: {error}: train it again") from None
        head.load_state_dict(weights)
        return head.eval()


def _require_same_shapes(head: AlphaFusion, weights: Mapping[str, torch.Tensor]) -> None:
    expected = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise ExperimentError(
                f"model.safetensors holds {name} {found.get(name, 'not at all')}, config.json asks for "
                f"{expected.get(name, 'none')}"
            )


class AlphaTransform(nn.Module):
    """One stream's transform as a layer, (..., dim) -> (..., dim).

    A learned `alpha` is a parameter: a scalar or, for "learned-dim", (dim,). Otherwise it is a scalar constant outside
    of the state.
    """

    alpha: torch.Tensor

    def __init__(self, name: str = "none", alpha: float | None = None, dim: int = 1) -> None:
        super().__init__()
        self.name = name
        self.transform = check_transform(name, alpha)
        self.initial = self.transform.value if alpha is None else float(alpha)
        shape = (dim,) if self.transform.alpha == "learned-dim" else ()
        value = torch.full(shape, self.initial, dtype=torch.float32)
        if self.transform.learns:
            self.alpha = nn.Parameter(value)
        else:
            self.register_buffer("alpha", value, persistent=False)

    def reset_parameters(self) -> None:
        """Reset a learned alpha to its initial value."""
        with torch.no_grad():
            self.alpha.fill_(self.initial)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform embeddings (..., dim)."""
        return self.transform.function(x, self.alpha)

    def extra_repr(self) -> str:
        """The name and formula, shown when the head is printed."""
        return f"{self.name}: {self.transform.formula}"


class Normalization(nn.Module):
    """Normalisation of one stream's transformed embeddings, (batch, dim) -> (batch, dim).

    Args:
        kind: "none": x; "zscore": (x - mean) / std, whose buffers `mean` and `std` (dim,) belong to the head's state
            and are computed from the training clips (std is 1 where a dimension is constant); "variance": the same
            with one std for all dimensions of a stream; "l2": x / |x|, 0 for x = 0.
        dim: dimension of the embeddings.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.kind = kind
        if kind in MEASURED:
            self.register_buffer("mean", torch.zeros(dim))
            self.register_buffer("std", torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise embeddings."""
        if self.kind in MEASURED:
            return (x - self.mean) / self.std
        return functional.normalize(x, dim=-1) if self.kind == "l2" else x

    def extra_repr(self) -> str:
        """The kind, shown when the head is printed."""
        return self.kind


def check_alphas(alphas: Mapping[str, float] | None, streams: Sequence[str]) -> None:
    """Raise `ExperimentError` unless each alpha is finite and belongs to a stream that the head reads."""
    for stream, alpha in (alphas or {}).items():
        check_choice("stream", stream, streams)
        if not math.isfinite(alpha):
            raise ExperimentError(f"the alpha of {stream} must be a finite number, not {alpha}")
