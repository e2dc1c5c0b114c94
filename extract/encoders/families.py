"""The families of encoders: a line for each model_type of HuggingFace's config.json. Doesn't load torch.

    load_encoder(stream) -> FAMILIES[model_type] -> the builder of its module -> Encoder

To add a family, write a builder `(stream, placement) -> Encoder` in a module of this folder, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphafuse.data.streams import (
    COMPACT,
    DEFAULT_STREAMS,
    GIVEN,
    MEDIA,
    OPTIONS,
    Stream,
    is_code,
    medium_of_word,
    require_name,
)
from alphafuse.errors import AlphafuseError, DatasetError, EncoderError, unknown
from alphafuse.system.files import one_line

from .hub import hub_reachable, local_folder, locate, not_found, read_file

if TYPE_CHECKING:
    from alphafuse.data.coverage import Hearing
    from alphafuse.data.dataset import Dataset

    from .encoder import Encoder, Placement

EVERY = ("medium", "precision")  # options of every stream


@dataclass(frozen=True)
class Family:
    """A family of encoders.

    Attributes:
        media: what it embeds; a stream must say which of several (`medium=audio`).
        module: module of this folder with its builder.
        builder: name of the builder.
        options: what a stream may choose: `frames`, `seconds`, `pool`, `protocol`.
    """

    media: tuple[str, ...]
    module: str
    builder: str
    options: tuple[str, ...] = ()


FAMILIES = {
    "timesformer": Family(("video",), "timesformer", "load_timesformer", ("protocol",)),
    "audio-spectrogram-transformer": Family(("audio",), "ast", "load_ast", ("protocol",)),
    "clap": Family(("audio",), "clap", "load_clap", ("seconds", "pool")),
    "clap_audio_model": Family(("audio",), "clap", "load_clap", ("seconds", "pool")),
    "clip": Family(("video",), "image", "load_clip", ("frames", "pool")),
    "clip_vision_model": Family(("video",), "image", "load_clip", ("frames", "pool")),
    "dinov2": Family(("video",), "image", "load_dinov2", ("frames", "pool")),
    "dinov2_with_registers": Family(("video",), "image", "load_dinov2", ("frames", "pool")),
    "dinov3_convnext": Family(("video",), "image", "load_dinov3", ("frames", "pool")),
    "dinov3_vit": Family(("video",), "image", "load_dinov3", ("frames", "pool")),
    "hubert": Family(("audio",), "waveform", "load_wav2vec2", ("seconds", "pool")),
    "pe_audio": Family(("audio",), "pe", "load_pe", ("seconds", "pool")),
    "pe_audio_video": Family(("video", "audio"), "pe", "load_pe", ("frames", "seconds", "pool")),
    "pe_video": Family(("video",), "pe", "load_pe", ("frames", "pool")),
    "siglip": Family(("video",), "image", "load_siglip", ("frames", "pool")),
    "siglip_vision_model": Family(("video",), "image", "load_siglip", ("frames", "pool")),
    "siglip2": Family(("video",), "image", "load_siglip2", ("frames", "pool")),
    "siglip2_vision_model": Family(("video",), "image", "load_siglip2", ("frames", "pool")),
    "videomae": Family(("video",), "video", "load_videomae", ("pool",)),
    "vivit": Family(("video",), "video", "load_vivit", ("pool",)),
    "vjepa2": Family(("video",), "video", "load_vjepa2", ("frames", "pool")),
    "wav2vec2": Family(("audio",), "waveform", "load_wav2vec2", ("seconds", "pool")),
    "wavlm": Family(("audio",), "waveform", "load_wav2vec2", ("seconds", "pool")),
    "whisper": Family(("audio",), "whisper", "load_whisper", ("seconds", "pool")),
}
CODE = Family(MEDIA, "code", "load_code")
GENERIC = Family(MEDIA, "generic", "load_generic", ("frames", "seconds", "pool"))  # a model_type that isn't listed


def load_encoder(stream: Stream, placement: Placement | None = None, *, trust_code: bool = False) -> Encoder:
    """Load the encoder of a stream.

    Args:
        stream: its encoder is a hub id, a folder, "compact" or "package.module:name".
        placement: device, precision; by default on the CPU in float32.
        trust_code: whether "package.module:name" may run.

    Raises:
        EncoderError: it can't be loaded, embeds another medium, or doesn't have one of the stream's options.
    """
    family = CODE if stream.is_code else _family_of(stream)
    if stream.is_code and not trust_code:
        raise EncoderError(
            f"stream {stream.name} would run the Python code {stream.encoder}: read it, then allow it with "
            "--trust-code (trust_code=True)"
        )
    _require_fit(stream, family)
    build: Callable[[Stream, Placement | None], Encoder] = getattr(
        import_module(f".{family.module}", __package__), family.builder
    )
    return build(stream, placement)


def hearing_of(streams: Iterable[Stream]) -> dict[str, Hearing]:
    """Return what streams hear, of those whose encoders are on this machine; code isn't run, and nothing is fetched."""
    found: dict[str, Hearing] = {}
    for stream in streams:
        try:
            if stream.encoder == GIVEN or stream.is_code or local_folder(stream) is None:
                continue
            hears = load_encoder(stream).hears
        except AlphafuseError:
            continue  # extraction says why it can't be loaded
        if hears is not None:
            found[stream.name] = hears
    return found


def known_hearing(dataset: Dataset) -> dict[str, Hearing]:
    """Return what a root's streams hear: as its stores record it, else as `hearing_of` says."""
    from alphafuse.data.coverage import stored_hearing  # commands that only parse streams read no store

    stored = stored_hearing(dataset)
    return {**stored, **hearing_of(one for one in dataset.streams if one.medium == "audio" and one.name not in stored)}


def parse_stream(text: str) -> Stream:
    """Return the stream that a text like "dino=facebook/dinov2-base,frames=16,pool=mean" describes.

    The name of a default stream alone ("ast") is that stream.

    Raises:
        DatasetError: the text isn't of this form, or the name or an option is invalid.
        EncoderError: the encoder doesn't tell what it embeds, and the option `medium` isn't given; or a folder holds
            an encoder of another medium, or without one of the options.

    >>> from alphafuse import parse_stream
    >>> parse_stream("tiny=compact,medium=audio")
    Stream(tiny=compact)
    """
    head, *parts = text.split(",")
    name, _, encoder = head.partition("=")
    defaults = {stream.name: stream for stream in DEFAULT_STREAMS}
    if not encoder and name in defaults:
        encoder = defaults[name].encoder
    options = dict(part.partition("=")[::2] for part in parts)
    if not name or not encoder or not all(options.values()):
        raise DatasetError(
            f"'{one_line(text, 80)}' is no stream: write NAME=ENCODER or NAME=ENCODER,option=value, such as "
            "clap=laion/clap-htsat-unfused"
        )
    require_name(name)
    for option in options:
        if option not in OPTIONS and not is_code(encoder):
            raise DatasetError(f"stream {name}: {unknown('option', option, OPTIONS)}")
    stream = Stream(name, encoder, medium_of(name, encoder, options), options)
    if Path(encoder).expanduser().is_dir():  # a hub id may be out of reach now; then loading checks it
        _require_fit(stream, _family_of(stream))
    return stream


def medium_of(name: str, encoder: str, options: dict[str, str]) -> str:
    """Return the medium of a stream that is being made: its option `medium`, or what its encoder embeds.

    Args:
        name, encoder: as in `Stream`.
        options: as in `Stream`; `medium` is taken out.

    Raises:
        DatasetError: the option is no medium.
        EncoderError: the encoder doesn't tell; the message asks for the option.
    """
    if "medium" in options:
        return medium_of_word(options.pop("medium"))
    if is_code(encoder) and ("frames" in options) != ("rate" in options):
        return "video" if "frames" in options else "audio"
    for stream in DEFAULT_STREAMS:
        if name == stream.name:
            return stream.medium
    ask = f"say what stream {name} embeds: --stream {name}={encoder},medium=sight (or sound)"
    if is_code(encoder):
        ask += f"; {encoder},frames=8 or {encoder},rate=16000 if it is a plain function"
    if encoder in (COMPACT, GIVEN) or is_code(encoder):
        raise EncoderError(ask)
    source = locate(Stream(name, encoder, MEDIA[0]))
    config = read_file(source, "config.json")
    if config is None:
        reached = "its config.json can't be read" if hub_reachable() else "the hub can't be reached"
        raise EncoderError(f"{reached}, so {ask}")
    family = FAMILIES.get(str(config.get("model_type")))
    media = family.media if family else _media_by_preprocessor(source)
    if len(media) != 1:
        raise EncoderError(f"{encoder} doesn't tell a medium: {ask}")
    return media[0]


def _family_of(stream: Stream) -> Family:
    """Return the family of a folder or hub id; `GENERIC` for one that isn't listed."""
    source = locate(stream)
    config = read_file(source, "config.json")
    if config is None:
        raise EncoderError(not_found(stream))
    return FAMILIES.get(str(config.get("model_type")), GENERIC)


def _require_fit(stream: Stream, family: Family) -> None:
    """Raise `EncoderError` unless a family embeds a stream's medium and has its options."""
    if stream.medium not in family.media:
        raise EncoderError(
            f"{stream.encoder} embeds {' and '.join(family.media)}, and stream {stream.name} is {stream.medium}: give "
            f"it another encoder, or remove it from the root (`alphafuse data streams --remove {stream.name}`)"
        )
    known = (*family.options, *EVERY)
    for option in stream.options:
        if option not in known and family is not CODE:
            raise EncoderError(f"stream {stream.name}: {unknown('option', option, known)}")


def _media_by_preprocessor(source: str) -> tuple[str, ...]:
    """Return what the preprocessor of an unlisted family reads; () if it doesn't tell."""
    for file in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
        content: dict[str, Any] = read_file(source, file) or {}
        if "image_processor_type" in content or "video_processor_type" in content:
            return ("video",)
        if "feature_extractor_type" in content:
            return ("audio",)
    return ()
