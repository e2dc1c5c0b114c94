"""An encoder: a frozen HuggingFace model without its classifier, with its preprocessing, on a device.

The families (`timesformer`, `ast`) build one from a hub id, a folder in HuggingFace's layout, or "compact", the small
one of the package; `families` lists them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alphafuse.data.streams import PROTOCOLS
from alphafuse.errors import EncoderError, unknown
from alphafuse.extract.decoding.specs import AudioSpec, FrameSpec
from alphafuse.extract.settings import PRECISIONS
from alphafuse.system.files import read_json

from .hub import LAYOUT, hub_reachable, locate
from .transformer import store_products_in


@dataclass(frozen=True)
class Placement:
    """Device, precision and preprocessing of an encoder.

    Attributes:
        device: name of the device, see `alphafuse.system.devices.choose_device`.
        precision: "fp32", or "bf16" for the models' matrix products; embeddings are float32 either way.
        protocol: preprocessing, see `alphafuse.extract.decoding.specs`.
        compile: compile the models with `torch.compile`; on the CPU that needs a C++ compiler.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    protocol: str = "standard"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EncoderError(unknown("precision", self.precision, PRECISIONS))
        if self.protocol not in PROTOCOLS:
            raise EncoderError(unknown("protocol", self.protocol, PROTOCOLS))


@dataclass(frozen=True)
class Encoder:
    """A frozen model with its preprocessing.

    Attributes:
        stream: "timesformer" or "ast".
        name: hub id, folder or "compact", as given.
        revision: the hub's commit, or "" for a folder.
        weights_sha256: checksum of the tensors in use, so independent of the file format.
        dim: length of an embedding.
        forward_bytes: approximate memory of a forward pass per clip.
        spec: `FrameSpec` or `AudioSpec`.
        prepare: (decoded frames or waveform of each clip, device=...) -> the model's input on the device.
        model: the forward pass up to the embedding, in eval mode, without gradients.
        placement: its device, precision and preprocessing.
        resize: decoded frames on any device -> resized ones, as by `decode.prepare_frame`; None if only decode workers
            can resize.
    """

    stream: str
    name: str
    revision: str
    weights_sha256: str
    dim: int
    forward_bytes: int
    spec: FrameSpec | AudioSpec
    prepare: Callable[..., torch.Tensor]
    model: nn.Module
    placement: Placement
    resize: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __repr__(self) -> str:
        return f"Encoder({self.stream}: {self.name!r}, dim={self.dim}, {self.spec}, {self.placement})"

    def recipe(self) -> dict[str, Any]:
        """Everything that decides this stream's numbers, json-able; the store compares it."""
        spec = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.spec).items()}
        return {
            "protocol": self.placement.protocol,
            "precision": self.placement.precision,
            "weights_sha256": self.weights_sha256,
            "dim": self.dim,
            **spec,
        }

    def embed(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Embed a batch: TimeSformer's CLS token, or the mean of AST's CLS and distillation tokens, after the norm.

        Args:
            clips: each (frames, height, width, 3) uint8, resized, for TimeSformer; (samples,) float32 for AST.

        Returns:
            (clips, dim) float32.

        Raises:
            EncoderError: the device ran out of memory.
        """
        device = self.placement.device
        try:
            with torch.inference_mode():
                inputs = self.prepare(clips, device=device)
                embeddings: np.ndarray = self.model(inputs).float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise EncoderError(f"{device} ran out of memory: lower --batch-size") from None
        return embeddings

    def resize_on_device(self, frames: np.ndarray) -> torch.Tensor:
        """Resize decoded frames (frames, height, width, 3) uint8 on the encoder's device.

        Raises:
            DecodeError: the resized frames are smaller than the crop.
        """
        assert self.resize is not None
        return self.resize(torch.from_numpy(frames).to(self.placement.device))


def place(encoder: Encoder, device: str, *, compile: bool = False) -> Encoder:
    """Copy an encoder from the CPU to another device, and compile it if requested."""
    placement = replace(encoder.placement, device=torch.device(device), compile=compile)
    model = encoder.model if placement.device.type == "cpu" else encoder.model.to(placement.device)
    compiled: Any = torch.compile(model) if compile else model  # callable as a module
    return replace(encoder, model=compiled, placement=placement)


def freeze(
    stream: str,
    name: str,
    model: Any,
    forward: Callable[[Any], nn.Module],
    *,
    spec: FrameSpec | AudioSpec,
    prepare: Callable[..., torch.Tensor],
    placement: Placement,
    resize: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Encoder:
    """Make an encoder from a HuggingFace model; it takes over the weights.

    Args:
        stream, name, spec, prepare, placement, resize: see `Encoder`.
        model: HuggingFace's model, in float32 on the CPU.
        forward: makes the family's forward pass from the model's modules.
    """
    config: Any = model.config
    weights_sha256 = _weights_sha256(model)
    model.eval().requires_grad_(False)
    fast = forward(model).eval().requires_grad_(False)
    if placement.precision == "bf16":
        store_products_in(fast, torch.bfloat16)
    frozen = Encoder(
        stream=stream,
        name=name,
        revision=getattr(config, "_commit_hash", None) or "",
        weights_sha256=weights_sha256,
        dim=config.hidden_size,
        forward_bytes=_forward_bytes(model),
        spec=spec,
        prepare=prepare,
        model=fast,
        placement=placement,
        resize=resize,
    )
    return place(frozen, str(placement.device), compile=placement.compile)


def _forward_bytes(model: Any) -> int:
    """Estimate one clip's peak memory: the hidden layer of an MLP, and about nine times the tokens' width."""
    config = model.config
    tokens = model.embeddings.position_embeddings.shape[1] * getattr(config, "num_frames", 1)
    return 4 * tokens * (2 * config.intermediate_size + 9 * config.hidden_size)


def load_pretrained(stream: str, name: str, model_class: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Load HuggingFace's model by its name: a hub id, a folder or "compact".

    Returns:
        The model in float32, its config, and its preprocessor_config.json as a dict, {} without one.

    Raises:
        EncoderError: the model doesn't exist, or its weights are damaged or incomplete.
    """
    import huggingface_hub
    import transformers
    from safetensors import SafetensorError

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    source = locate(stream, name)
    is_folder = Path(source).is_dir()
    offline = not is_folder and not hub_reachable()
    try:
        model, report = model_class.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, local_files_only=offline
        )
    except (OSError, ValueError) as error:
        if is_folder:
            raise EncoderError(f"{source} can't be loaded: {str(error).splitlines()[0]}") from None
        raise EncoderError(_not_found_message(stream, name, offline=offline)) from None
    except (SafetensorError, RuntimeError) as error:  # truncated weights; shapes that don't fit the config
        raise EncoderError(f"weights of {name} can't be loaded: {str(error).splitlines()[0]}") from None
    if report["missing_keys"]:  # HuggingFace would fill them with random numbers
        missing = sorted(report["missing_keys"])
        raise EncoderError(
            f"{name} lacks {len(missing)} weights, such as {missing[0]}: it is incomplete or another model"
        )
    return model, model.config, _preprocessor_config(source, offline=offline)


def _preprocessor_config(source: str, *, offline: bool) -> dict[str, Any]:
    if Path(source).is_dir():
        path = Path(source) / "preprocessor_config.json"
        return read_json(path) if path.is_file() else {}
    from transformers.utils import cached_file

    found = cached_file(
        source, "preprocessor_config.json", local_files_only=offline, _raise_exceptions_for_missing_entries=False
    )
    return read_json(Path(found)) if found else {}


def _not_found_message(stream: str, name: str, *, offline: bool) -> str:
    what = f"the hub can't be reached and '{name}' is not in its cache" if offline else f"the hub has no model '{name}'"
    return (
        f"{what}: point at a folder (--{stream} FOLDER with {LAYOUT}), convert the original checkpoint "
        f"(`alphafuse convert {stream} FILE OUT`), or try the small "
        f"encoder of the package (--{stream} compact, or `alphafuse data demo`)"
    )


def _weights_sha256(model: nn.Module) -> str:
    """Return a checksum of shapes and values of all tensors; their names differ between HuggingFace's versions."""
    tensors = [
        hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + tensor.contiguous().numpy().tobytes())
        for tensor in model.state_dict().values()
    ]
    return hashlib.sha256("".join(sorted(digest.hexdigest() for digest in tensors)).encode()).hexdigest()
