"""An encoder: a frozen model without its classifier, with its preprocessing, on a device.

Builders (`families`) make one from a stream: `load_pretrained` reads HuggingFace's files, `freeze` puts a model, its
forward pass and its preprocessing together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from alphafuse.data.coverage import Hearing
from alphafuse.data.streams import Stream
from alphafuse.errors import EncoderError, unknown
from alphafuse.extract.decoding.specs import AudioSpec, Spec
from alphafuse.extract.settings import PRECISIONS
from alphafuse.system.processes import measure_memory

from .hub import cached_revision, hub_reachable, locate, not_found, read_preprocessor
from .transformer import store_products_in

EXAMPLE_SECONDS = 60  # of sound, for encoders that hear all of it
MAX_REASON = 300  # characters that are quoted of another library's message
EXAMPLE_SIZE = (480, 640)  # of frames that decode workers leave as they are
UNKNOWN_PASS_BYTES = 2**30  # memory of a forward pass where the system doesn't tell


@dataclass(frozen=True)
class Placement:
    """Device and precision of an encoder.

    Attributes:
        device: name of the device, see `alphafuse.system.devices.choose_device`.
        precision: "fp32", or "bf16" for the models' matrix products; embeddings are float32 either way. A stream's own
            option `precision` comes first.
        compile: compile the models with `torch.compile`; on the CPU that needs a C++ compiler.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EncoderError(unknown("precision", self.precision, PRECISIONS))


@dataclass(frozen=True)
class Encoder:
    """A frozen model with its preprocessing.

    Attributes:
        stream: its name, encoder, medium and options.
        revision: the hub's commit, or "" for a folder.
        weights_sha256: checksum of the tensors in use, so independent of the file format.
        dim: length of an embedding.
        spec: the frames or the waveform that decode workers prepare.
        prepare: (frames or waveform of each clip, device=...) -> the model's input on the device.
        model: the forward pass up to the embedding, (clips, dim); a module is in eval mode, without gradients.
        placement: its device and precision.
        details: what else decides the numbers, json-able: family, pooling, preprocessing beyond `spec`.
        resize: decoded frames on any device -> resized ones, as by `decode.prepare_frame`; None if only decode workers
            can resize.
        hearing: what it hears of a clip, if `spec` doesn't say it all.
    """

    stream: Stream
    revision: str
    weights_sha256: str
    dim: int
    spec: Spec
    prepare: Callable[..., Any]
    model: Callable[[Any], torch.Tensor]
    placement: Placement
    details: Mapping[str, Any] = field(default_factory=dict)
    resize: Callable[[torch.Tensor], torch.Tensor] | None = None
    hearing: Hearing | None = None

    def __repr__(self) -> str:
        return f"Encoder({self.stream.name}: {self.stream.encoder!r}, dim={self.dim}, {self.spec}, {self.placement})"

    @property
    def hears(self) -> Hearing | None:
        """What it hears of a clip; None if it sees pictures."""
        if not isinstance(self.spec, AudioSpec):
            return None
        most = self.spec.max_samples
        return self.hearing or Hearing(None if most is None else most / self.spec.rate)

    def recipe(self) -> dict[str, Any]:
        """Everything that decides this stream's numbers, json-able; the store compares it."""
        spec = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.spec).items()}
        return {
            "precision": self.placement.precision,
            "weights_sha256": self.weights_sha256,
            "dim": self.dim,
            **spec,
            **self.details,
        }

    def embed(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Embed a batch.

        Args:
            clips: each (frames, height, width, 3) uint8, or (samples,) float32, as `spec` says.

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

    @cached_property
    def forward_bytes(self) -> int:
        """Memory of this process that a forward pass of one clip takes at most; measured by a trial pass.

        Raises:
            EncoderError: the pass fails, or doesn't give one embedding of `dim` numbers.
        """
        try:
            made, taken = measure_memory(lambda: self.embed([example_input(self.spec)]))
        except EncoderError:
            raise
        except Exception as error:  # of a model, a preprocessor or their settings
            raise EncoderError(f"{self.stream.encoder} can't embed a trial input: {line_of(error)}") from error
        if made.shape != (1, self.dim):
            raise EncoderError(
                f"{self.stream.encoder} returns an array of shape {made.shape[1:]} for a clip, not ({self.dim},)"
            )
        return UNKNOWN_PASS_BYTES if taken is None else taken


def example_input(spec: Spec) -> np.ndarray:
    """Return a black picture or silence of the largest size that an encoder gets."""
    if isinstance(spec, AudioSpec):
        return np.zeros(max(spec.min_samples, spec.max_samples or EXAMPLE_SECONDS * spec.rate), np.float32)
    size = spec.prepared if spec.prepared != (0, 0) else EXAMPLE_SIZE
    return np.zeros((spec.frames, *size, 3), np.uint8)


def place(encoder: Encoder, device: str, *, compile: bool = False) -> Encoder:
    """Copy an encoder from the CPU to another device, and compile it if requested."""
    placement = replace(encoder.placement, device=torch.device(device), compile=compile)
    model: Any = encoder.model
    if isinstance(model, nn.Module):
        model = model if placement.device.type == "cpu" else model.to(placement.device)
        model = torch.compile(model) if compile else model  # callable as a module
    elif hasattr(model, "to"):  # code of one's own, which isn't compiled
        model = model.to(placement.device)
    return replace(encoder, model=model, placement=placement)


def freeze(
    stream: Stream,
    model: Any,
    forward: Callable[[Any], nn.Module],
    *,
    spec: Spec,
    prepare: Callable[..., Any],
    placement: Placement | None = None,
    dim: int | None = None,
    details: Mapping[str, Any] | None = None,
    resize: Callable[[torch.Tensor], torch.Tensor] | None = None,
    hearing: Hearing | None = None,
) -> Encoder:
    """Make an encoder from a HuggingFace model; it takes over the weights.

    Args:
        stream, spec, prepare, details, resize, hearing: see `Encoder`.
        model: HuggingFace's model, in float32 on the CPU.
        forward: makes the family's forward pass from the model's modules.
        placement: device and precision; by default on the CPU in float32.
        dim: length of an embedding; by default the config's hidden size.
    """
    placement = placement or Placement()
    placement = replace(placement, precision=stream.options.get("precision", placement.precision))
    config: Any = model.config
    _store_parametrized_weights(model)
    weights_sha256 = _weights_sha256(model)
    model.eval().requires_grad_(False)
    fast = forward(model).eval().requires_grad_(False)
    if placement.precision == "bf16" and not store_products_in(fast, torch.bfloat16):
        fast = _InBfloat16(fast)
    frozen = Encoder(
        stream=stream,
        revision=cached_revision(stream.encoder),
        weights_sha256=weights_sha256,
        dim=dim or config.hidden_size,
        spec=spec,
        prepare=prepare,
        model=fast,
        placement=placement,
        details={"family": config.model_type, **(details or {})},
        resize=resize,
        hearing=hearing,
    )
    return place(frozen, str(placement.device), compile=placement.compile)


def _store_parametrized_weights(model: nn.Module) -> None:
    """Replace weights that are computed from others at each pass (`weight_norm`) by their values; they can be pickled.

    HuggingFace's speech models have such weights.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
            module._load_state_dict_pre_hooks.clear()  # weight_norm's local function, for checkpoints of older versions


class _InBfloat16(nn.Module):
    """A forward pass of HuggingFace's modules whose products run in bfloat16; sums, norms and results are float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> torch.Tensor:
        with torch.autocast(next(self.parameters()).device.type, torch.bfloat16):
            embeddings: torch.Tensor = self.model(inputs)
        return embeddings.float()


def load_pretrained(
    stream: Stream, model_class: Any, *, optional: Sequence[str] = (), **loading: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """Load HuggingFace's model of a stream from a hub id, a folder or "compact".

    Args:
        stream: its encoder and medium.
        model_class: class of `transformers`, with `from_pretrained`.
        optional: modules and weights that an embedding doesn't need; if one is missing, the model goes without.
        loading: further arguments of `from_pretrained`, such as `key_mapping`.

    Returns:
        The model in float32, its config, and its preprocessor's settings, {} without a file of them.

    Raises:
        EncoderError: the model doesn't exist, or its weights are damaged or incomplete.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    quieten()
    name, source = stream.encoder, locate(stream)
    is_folder = Path(source).is_dir()
    offline = not is_folder and not hub_reachable()
    try:
        model, report = model_class.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, local_files_only=offline, **loading
        )
    except (OSError, ValueError) as error:
        if is_folder:
            raise EncoderError(f"{source} can't be loaded: {str(error).splitlines()[0]}") from None
        raise EncoderError(not_found(stream)) from None
    except ImportError as error:
        raise EncoderError(f"{name} needs another package: {line_of(error)}") from None
    except (SafetensorError, RuntimeError) as error:  # truncated weights; shapes that don't fit the config
        reason = "their shapes don't fit its config.json" if "mismatched" in str(error) else line_of(error)
        raise EncoderError(f"weights of {name} can't be loaded: {reason}") from None
    except (AttributeError, LookupError, StrictDataclassError, TypeError, ZeroDivisionError) as error:
        raise EncoderError(f"config.json of {name} has a value that can't be used: {line_of(error)}") from None
    missing = sorted(key for key in report["missing_keys"] if not _remove_part(model, key, optional))
    if missing:  # HuggingFace would fill them with random numbers
        raise EncoderError(
            f"{stream.encoder} lacks {len(missing)} weights, such as {missing[0]}: it is incomplete or another model"
        )
    return model, model.config, read_preprocessor(source, stream.medium)


def quieten() -> None:
    """Let HuggingFace's libraries print nothing but errors."""
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _remove_part(model: nn.Module, key: str, names: Sequence[str]) -> bool:
    """Set the module or weight of these names that holds the weight `key` to None; return whether there is one."""
    parts = key.split(".")
    place = next((i for i, part in enumerate(parts) if part in names), None)
    if place is None:
        return False
    setattr(model.get_submodule(".".join(parts[:place])), parts[place], None)
    return True


def line_of(error: Exception) -> str:
    """Return the message as one line, with the kind of error if it says little."""
    text = " ".join(str(error).split())
    return (f"{type(error).__name__} {text}" if " " not in text else text)[:MAX_REASON]


def _weights_sha256(model: nn.Module) -> str:
    """Return a checksum of shapes and values of all tensors; their names differ between HuggingFace's versions."""
    tensors = [
        hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + tensor.contiguous().numpy().tobytes())
        for tensor in model.state_dict().values()
    ]
    return hashlib.sha256("".join(sorted(digest.hexdigest() for digest in tensors)).encode()).hexdigest()
