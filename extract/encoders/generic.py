"""Families that aren't listed: any model of `transformers` that takes pictures, videos or sound.

HuggingFace's own processor runs beside the model, clip by clip, on frames as decoded; its PIL class, where there are
several. One clip at a time is slower than the listed families on a GPU, and equal to HuggingFace for any processor.
What is taken as the embedding is found by a trial pass, said once, and a part of the recipe.

Shapes: b clips, t frames, n tokens, d width.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alphafuse.data.streams import Stream
from alphafuse.errors import EncoderError
from alphafuse.extract.decoding.specs import AudioSpec, FrameSpec, Spec

from .encoder import Encoder, Placement, freeze, line_of, load_pretrained, quieten
from .hub import hub_reachable, locate, read_file, read_preprocessor
from .inputs import chosen_frames, chosen_pool, chosen_samples
from .waveform import SECONDS, least_samples

FRAMES = 8
INPUTS = {"video": ("pixel_values", "pixel_values_videos"), "audio": ("input_values", "input_features")}
FEATURES = {"video": ("get_image_features", "get_video_features"), "audio": ("get_audio_features",)}  # beside texts
OWN = "write an encoder of your own, package.module:name"  # the way out for any model
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
UNUSED = ("masked_spec_embed", "mask_token", "pooler")  # may be missing; then the embedding doesn't need them
TRIAL_SIZE = (240, 320)  # height and width of the frames of the trial pass, pixels

Example = dict[str, torch.Tensor]  # HuggingFace's input of one clip
_said: set[str] = set()


def load_generic(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load a model whose family isn't listed.

    A model of images embeds each frame, and a clip's embedding is the mean over its frames. Options: `frames` (by
    default the config's number, or 8) or `seconds` (of sound from a clip's start, 30 by default); `pool`: "pooler"
    (`pooler_output`) where the model has it, else "mean" of the tokens or cells of `last_hidden_state` that no mask
    excludes, or "cls", its first token. A model with a text side gives "projection" (`get_image_features` or
    `get_audio_features`).

    Raises:
        EncoderError: it takes neither pictures nor sound, gives no such output, needs Python code of its own, can't be
            loaded, or an option isn't possible.
    """
    model_class = _model_class(stream)
    processor = _processor(stream)
    model, config, _ = load_pretrained(stream, model_class, optional=UNUSED)
    spec = _spec(stream, config, processor)
    features = _features(model_class, stream.medium)
    prepare = partial(processed, processor=processor, spec=spec, accepted=_accepted(model, features))
    call = getattr(model.eval(), features) if features else model
    try:
        with torch.inference_mode():
            example = prepare([_example(spec)], device=torch.device("cpu"))[0]
            output = call(**example)
        is_video = example["pixel_values"].ndim == 5 if "pixel_values" in example else True
        pool = chosen_pool(stream, _pools(output, is_projection=bool(features)))
        dim = Generic(model, pool, features).pool_of(output, None).shape[-1]
    except FAILURES as error:
        raise EncoderError(f"{stream.encoder} can't embed a trial input: {line_of(error)}; {OWN}") from None
    over = " of each frame, averaged over frames" if stream.medium == "video" and not is_video else ""
    _say(f"stream {stream.name}: {stream.encoder} is of no listed family; its embedding is pool={pool}{over}")
    return freeze(
        stream,
        model,
        partial(Generic, pool=pool, features=features),
        spec=spec,
        prepare=prepare,
        placement=placement,
        dim=dim,
        details={"processor": type(processor).__name__, "pool": pool, "preprocessor": _settings(processor)},
    )


class Generic(nn.Module):
    """Any model of `transformers`, one clip at a time, up to its pooled output."""

    def __init__(self, model: Any, pool: str, features: str = "") -> None:
        """Take over a model.

        Args:
            model: the model.
            pool: "pooler", "mean", "cls" or "projection".
            features: the model's method that gives the output; "" for its forward pass.
        """
        super().__init__()
        self.model, self._pool, self._features = model, pool, features

    def forward(self, clips: list[Example]) -> torch.Tensor:
        """Map the result of `processed`, of b clips, to (b, d) float32."""
        call = getattr(self.model, self._features) if self._features else self.model
        embeddings = [self.pool_of(call(**clip), clip.get("attention_mask")).mean(dim=0) for clip in clips]
        return torch.stack(embeddings)

    def pool_of(self, output: Any, mask: torch.Tensor | None) -> torch.Tensor:
        """Return (t or 1, d) float32 of a model's output for one clip."""
        if self._pool in ("pooler", "projection"):
            pooled = output if isinstance(output, torch.Tensor) else output.pooler_output
            return pooled.float().flatten(1)
        states = output.last_hidden_state.float()  # (t or 1, n, d), or (t or 1, d, rows, columns)
        if states.ndim == 4:
            return states.mean(dim=(2, 3))
        if self._pool == "cls":
            return states[:, 0]
        if mask is None or mask.shape != states.shape[:2]:
            return states.mean(dim=1)
        return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def processed(
    clips: Sequence[np.ndarray], processor: Any, spec: Spec, accepted: Sequence[str], *, device: torch.device
) -> list[Example]:
    """Map frames, (t, height, width, 3) uint8, or waveforms, (samples,) float32, to the model's input of each clip."""
    made = []
    for clip in clips:
        if isinstance(spec, AudioSpec):
            values = processor(clip, sampling_rate=spec.rate, return_tensors="pt")
        else:
            chosen = {"do_sample_frames": False} if hasattr(processor, "do_sample_frames") else {}
            values = processor(list(clip), return_tensors="pt", input_data_format="channels_last", **chosen)
        made.append({name: torch.as_tensor(values[name]).to(device) for name in accepted if name in values})
    return made


def _model_class(stream: Stream) -> Any:
    """Return the class of `transformers` for a stream's config.json, after checking that it takes its medium."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    config = read_file(locate(stream), "config.json") or {}
    model_type = str(config.get("model_type"))
    if model_type not in transformers.CONFIG_MAPPING:
        reason = (
            "needs Python code of its own, which isn't run because a file names it"
            if "auto_map" in config
            else f"has model_type '{model_type}', which transformers {transformers.__version__} doesn't know"
        )
        raise EncoderError(f"{stream.encoder} {reason}: {OWN}")
    model_class = MODEL_MAPPING.get(transformers.CONFIG_MAPPING[model_type], None)
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    name = getattr(model_class, "main_input_name", "nothing")
    takes = next((medium for medium, names in INPUTS.items() if name in names), "")
    if model_class is None or (takes != stream.medium and not _features(model_class, stream.medium)):
        if takes:
            raise EncoderError(
                f"{stream.encoder} ({model_type}) embeds {takes}, and stream {stream.name} is {stream.medium}: give "
                "it another encoder, or another medium"
            )
        raise EncoderError(
            f"{stream.encoder} ({model_type}) takes {name}, neither pictures nor sound: name a model of these, or {OWN}"
        )
    return model_class


def _features(model_class: Any, medium: str) -> str:
    """Return the method with which a model that has a text side embeds pictures or sound; "" without a text side."""
    return next((name for name in FEATURES[medium] if hasattr(model_class, name)), "")


def _processor(stream: Stream) -> Any:
    """Return HuggingFace's processor of a stream."""
    import transformers

    quieten()
    source = locate(stream)
    settings = read_preprocessor(source, stream.medium)
    if not settings:
        raise EncoderError(
            f"{stream.encoder} has no preprocessor_config.json, which says how its input is prepared: add one, or {OWN}"
        )
    if stream.medium == "audio":
        kind: Any = transformers.AutoFeatureExtractor
    elif "video_processor_type" in settings:
        kind = transformers.AutoVideoProcessor
    else:
        kind = partial(transformers.AutoImageProcessor.from_pretrained, backend="pil")
    load = kind if isinstance(kind, partial) else kind.from_pretrained
    offline = not Path(source).is_dir() and not hub_reachable()
    try:
        return load(source, local_files_only=offline)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise EncoderError(f"the preprocessor of {stream.encoder} can't be loaded: {line_of(error)}; {OWN}") from None


def _spec(stream: Stream, config: Any, processor: Any) -> Spec:
    if stream.medium == "audio":
        rate = int(processor.sampling_rate)
        samples = chosen_samples(stream, rate, default_seconds=SECONDS)
        kernels = getattr(config, "conv_kernel", None)
        # an unknown model may need more than one sample, and this much is less than any sound worth embedding
        least = least_samples(kernels, config.conv_stride) if isinstance(kernels, (list, tuple)) else rate // 10
        return AudioSpec(rate, samples, least)
    configs = (config, getattr(config, "vision_config", None))
    counts = (getattr(one, name, None) for one in configs for name in ("num_frames", "frames_per_clip"))
    frames = next((count for count in counts if isinstance(count, int)), FRAMES)
    values: dict[str, Any] = {"scale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "resize": "processor"}
    return FrameSpec(frames=chosen_frames(stream, frames), shortest_edge=0, crop=(0, 0), **values)


def _example(spec: Spec) -> np.ndarray:
    if isinstance(spec, AudioSpec):
        return np.zeros(max(spec.min_samples, min(spec.rate, spec.max_samples or spec.rate)), np.float32)
    return np.zeros((spec.frames, *TRIAL_SIZE, 3), np.uint8)


def _accepted(model: Any, features: str) -> list[str]:
    """Return the names of the inputs that a model takes."""
    return list(inspect.signature(getattr(model, features) if features else model.forward).parameters)


def _pools(output: Any, *, is_projection: bool) -> list[str]:
    """Return the poolings that an output allows, the default first."""
    if is_projection:
        return ["projection"]
    states = getattr(output, "last_hidden_state", None)
    pools = ["pooler"] if isinstance(getattr(output, "pooler_output", None), torch.Tensor) else []
    pools += ["mean"] if isinstance(states, torch.Tensor) and states.ndim in (3, 4) else []
    pools += ["cls"] if isinstance(states, torch.Tensor) and states.ndim == 3 else []
    if not pools:
        raise ValueError("it returns neither pooler_output nor last_hidden_state")
    return pools


def _settings(processor: Any) -> dict[str, Any]:
    """Return the plain values of a processor's settings; tables that follow from them are left out."""
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in processor.to_dict().items()}
    plain = (bool, int, float, str, list, dict, type(None))
    return {key: value for key, value in sorted(settings.items()) if isinstance(value, plain) and key != "mel_filters"}


def _say(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logging.getLogger("alphafuse").warning(text)
