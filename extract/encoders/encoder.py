"""The frozen encoders: HuggingFace's TimeSformer and AST without their classifiers.

An encoder is named by a hub id, by a folder in HuggingFace's layout, or "compact" for the small one that is shipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alphafuse.errors import EncoderError, unknown
from alphafuse.extract.decoding.specs import AudioSpec, FrameSpec, check_protocol
from alphafuse.system.files import read_json

from .forward import pooled, store_products_in
from .locate import LAYOUT, hub_reachable, locate
from .tensors import audio_inputs, frame_inputs

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Placement:
    """Where and how an encoder runs.

    Attributes:
        device: see `alphafuse.system.devices.choose_device`.
        precision: "fp32", or "bf16" for the models' matrix products; embeddings are float32 either way.
        protocol: preprocessing, see `alphafuse.extract.decoding.specs`.
        compile: have `torch.compile` write the models' kernels; on the CPU that takes a C++ compiler.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    protocol: str = "standard"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EncoderError(unknown("precision", self.precision, PRECISIONS))
        check_protocol(self.protocol)


@dataclass(frozen=True)
class Encoder:
    """A frozen model with its preprocessing.

    Attributes:
        modality: "timesformer" or "ast".
        name: as it was asked for.
        revision: the hub's commit, or "" for a folder.
        weights_sha256: of the tensors used, so independent of the file format.
        dim: length of an embedding.
        forward_bytes: memory that a forward pass takes per clip, about.
        spec: `FrameSpec` or `AudioSpec`.
        model: the forward pass up to the embedding (`forward.pooled`), in eval mode, without gradients.
        placement: where and how it runs.
    """

    modality: str
    name: str
    revision: str
    weights_sha256: str
    dim: int
    forward_bytes: int
    spec: FrameSpec | AudioSpec
    model: nn.Module
    placement: Placement

    def __repr__(self) -> str:
        return f"Encoder({self.modality}: {self.name!r}, dim={self.dim}, {self.spec}, {self.placement})"

    def recipe(self) -> dict[str, Any]:
        """Everything that decides this modality's numbers, json-able; compared by the store."""
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
            clips: each (frames, height, width, 3) uint8 for TimeSformer, see `tensors.frame_inputs`; (samples,)
                float32 for AST, see `tensors.audio_inputs`.

        Returns:
            (clips, dim) float32.

        Raises:
            EncoderError: the device ran out of memory.
        """
        device = self.placement.device
        try:
            with torch.inference_mode():
                if isinstance(self.spec, FrameSpec):
                    inputs = frame_inputs(clips, self.spec, device=device)
                else:
                    inputs = audio_inputs(clips, self.spec, device=device)
                embeddings: np.ndarray = self.model(inputs).float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise EncoderError(f"{device} ran out of memory: lower --batch-size") from None
        return embeddings


def place(encoder: Encoder, device: str, *, compile: bool = False) -> Encoder:
    """An encoder that is on the CPU, on another device, and compiled there if that is wanted."""
    placement = replace(encoder.placement, device=torch.device(device), compile=compile)
    model = encoder.model if placement.device.type == "cpu" else encoder.model.to(placement.device)
    compiled: Any = torch.compile(model) if compile else model  # callable as a module
    return replace(encoder, model=compiled, placement=placement)


def load_timesformer(name: str, placement: Placement | None = None) -> Encoder:
    """Load a TimeSformer: hub id, folder or "compact"; it is fed as many frames as its config says.

    Raises:
        EncoderError: not to be had, not a TimeSformer, weights missing, or settings that aren't implemented.
    """
    from transformers import TimesformerModel

    source = locate("timesformer", name)
    model, config, preprocessor = _load(TimesformerModel, source, name)
    if config.attention_type == "space_only":
        raise EncoderError(
            f"{name} has space_only attention, whose average over frames HuggingFace leaves out: use a model with "
            "divided_space_time or joint_space_time attention"
        )
    placement = placement or Placement()
    size = {"frames": config.num_frames, "image_size": config.image_size}
    notebook = placement.protocol == "notebook"
    spec = FrameSpec.notebook(**size) if notebook else FrameSpec.from_config(preprocessor, **size)
    return _freeze("timesformer", name, model, spec, placement)


def load_ast(name: str, placement: Placement | None = None) -> Encoder:
    """Load an AST: hub id, folder or "compact"; any input length and strides.

    Raises:
        EncoderError: not to be had, not an AST, weights missing, or settings that aren't implemented.
    """
    from transformers import ASTModel

    source = locate("ast", name)
    model, config, preprocessor = _load(ASTModel, source, name)
    placement = placement or Placement()
    size = {"mel_bins": config.num_mel_bins, "max_length": config.max_length}
    notebook = placement.protocol == "notebook"
    spec = AudioSpec.notebook(**size) if notebook else AudioSpec.from_config(preprocessor, **size)
    return _freeze("ast", name, model, spec, placement)


def load_encoders(names: Mapping[str, str], placement: Placement | None = None) -> dict[str, Encoder]:
    """modality -> encoder, for modality -> hub id, folder or "compact"; `EncoderError` when one can't be had."""
    loaders = {"timesformer": load_timesformer, "ast": load_ast}
    return {modality: loaders[modality](name, placement) for modality, name in names.items()}


def random_encoders(placement: Placement | None = None) -> dict[str, Encoder]:
    """Both full-size models with random weights, to measure speed where the trained ones aren't at hand."""
    placement = placement or Placement()
    models = random_models()
    frame_spec = FrameSpec.from_config({}, frames=8, image_size=224)
    audio_spec = AudioSpec.from_config({}, mel_bins=128, max_length=1024)
    return {
        "timesformer": _freeze("timesformer", "random", models["timesformer"], frame_spec, placement),
        "ast": _freeze("ast", "random", models["ast"], audio_spec, placement),
    }


def random_models() -> dict[str, nn.Module]:
    """HuggingFace's full-size models with random weights, the same every time."""
    from transformers import ASTConfig, ASTModel, TimesformerConfig, TimesformerModel

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return {"timesformer": TimesformerModel(TimesformerConfig()).eval(), "ast": ASTModel(ASTConfig()).eval()}


def _freeze(modality: str, name: str, model: nn.Module, spec: FrameSpec | AudioSpec, placement: Placement) -> Encoder:
    config: Any = model.config
    weights_sha256 = _weights_sha256(model)
    model.eval().requires_grad_(False)
    fast = pooled(model).eval().requires_grad_(False)
    if placement.precision == "bf16":
        store_products_in(fast, torch.bfloat16)
    frozen = Encoder(
        modality=modality,
        name=name,
        revision=getattr(config, "_commit_hash", None) or "",
        weights_sha256=weights_sha256,
        dim=config.hidden_size,
        forward_bytes=_forward_bytes(model),
        spec=spec,
        model=fast,
        placement=placement,
    )
    return place(frozen, str(placement.device), compile=placement.compile)


def _forward_bytes(model: Any) -> int:
    """Of one clip's largest moment: the hidden layer of an MLP, and about nine times the tokens' own width."""
    config = model.config
    tokens = model.embeddings.position_embeddings.shape[1] * getattr(config, "num_frames", 1)
    return 4 * tokens * (2 * config.intermediate_size + 9 * config.hidden_size)


def _load(model_class: Any, source: str, name: str) -> tuple[Any, Any, dict[str, Any]]:
    """(model in float32, its config, its preprocessor_config.json as a dict, {} without one)."""
    import huggingface_hub
    import transformers
    from safetensors import SafetensorError

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    modality = "timesformer" if model_class is transformers.TimesformerModel else "ast"
    is_folder = Path(source).is_dir()
    offline = not is_folder and not hub_reachable()
    try:
        model, report = model_class.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, local_files_only=offline
        )
    except (OSError, ValueError) as error:
        if is_folder:
            raise EncoderError(f"{source} can't be loaded: {str(error).splitlines()[0]}") from None
        raise EncoderError(_not_to_be_had(modality, name, offline=offline)) from None
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


def _not_to_be_had(modality: str, name: str, *, offline: bool) -> str:
    what = f"the hub can't be reached and '{name}' is not in its cache" if offline else f"the hub has no model '{name}'"
    return (
        f"{what}: point at a folder (--{modality} FOLDER with {LAYOUT}), convert the original checkpoint "
        f"(`alphafuse convert {modality} FILE OUT`), or try without "
        f"weights (--{modality} compact, or `alphafuse data demo`)"
    )


def _weights_sha256(model: nn.Module) -> str:
    """Checksum of shapes and values of all tensors; their names in memory change with HuggingFace's versions."""
    tensors = [
        hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + tensor.contiguous().numpy().tobytes())
        for tensor in model.state_dict().values()
    ]
    return hashlib.sha256("".join(sorted(digest.hexdigest() for digest in tensors)).encode()).hexdigest()
