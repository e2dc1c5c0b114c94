"""PE-AV (Perception Encoder, audiovisual): its picture side and its sound side, each alone.

Option `pool`: "projection", the published embedding of a side, in the space that texts share (not normalised to length
1); or "pooler", the encoder's CLS token, before the projection. The text tower isn't loaded.

Shapes: b clips, t frames, d width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from alphafuse.data.streams import Stream

from .encoder import Encoder, Placement, freeze, load_pretrained
from .hub import locate, read_file
from .image import DINOV3
from .inputs import (
    HALVES,
    chosen_frames,
    chosen_pool,
    chosen_samples,
    frame_inputs,
    frame_spec,
    heard,
    make_extractor,
    settings_of,
)
from .video import PooledVideo
from .waveform import SECONDS, PooledSound, sound_inputs

FRAMES = 16  # facebook/pe-av-*-16-frame; the other checkpoints take any number
PICTURE = {**DINOV3, **HALVES, "size": {"height": 336, "width": 336}}
SOUND = {"sampling_rate": 48_000, "hop_length": 1920}


def load_pe(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load the side of a PE-AV that the stream's medium names, also of a checkpoint that is one side.

    Picture: option `frames`, by default the preprocessor's num_frames, or 16 without; torch resizes, as in the only
    HuggingFace processor. Its image model needs the package timm.
    Sound: samples at 48 kHz, of the first 30 s by default (option `seconds`), mirrored up to a whole number of hops.

    Raises:
        EncoderError: it can't be loaded, lacks weights or timm, or an option or a setting isn't possible.
    """
    model, config, preprocessor = load_pretrained(stream, _side(stream), key_mapping={rf"^{stream.medium}_model\.": ""})
    pool = chosen_pool(stream, ("projection", "pooler"))
    head = model.head if pool == "projection" else None
    shared: dict[str, Any] = {"placement": placement}
    shared["dim"] = config.text_config.hidden_size if head else model.encoder.config.hidden_size
    weights = model if head else model.encoder
    if stream.medium == "video":
        frames = chosen_frames(stream, preprocessor.get("num_frames") or FRAMES)
        spec = frame_spec(preprocessor, PICTURE, frames=frames, resize="torch")
        return freeze(
            stream,
            weights,
            lambda _: PooledVideo(model.encoder, "pooler", argument="pixel_values_videos", norm=head),
            spec=spec,
            prepare=partial(frame_inputs, spec=spec),
            details={"processor": "PeVideoVideoProcessor", "pool": pool},
            **shared,
        )
    extractor = make_extractor("PeAudioFeatureExtractor", preprocessor, SOUND)
    samples = chosen_samples(stream, extractor.sampling_rate, default_seconds=SECONDS)
    return freeze(
        stream,
        weights,
        lambda _: PooledSound(model.encoder, "pooler", head),
        spec=heard(extractor, samples),
        prepare=partial(sound_inputs, extractor=extractor),
        details={"pool": pool, **settings_of(extractor, SOUND)},
        **shared,
    )


def _side(stream: Stream) -> Any:
    """Return a HuggingFace model of one side of a checkpoint: its `encoder`, and its projection as `head`."""
    from transformers import PeAudioConfig, PeAudioVideoConfig, PeVideoConfig
    from transformers.models.pe_audio import modeling_pe_audio as sound
    from transformers.models.pe_video import modeling_pe_video as picture

    medium = stream.medium
    is_video = medium == "video"
    has_both = (read_file(locate(stream), "config.json") or {}).get("model_type") == "pe_audio_video"
    base: Any = picture.PeVideoPreTrainedModel if is_video else sound.PeAudioPreTrainedModel

    class Side(base):
        config_class = PeAudioVideoConfig if has_both else PeVideoConfig if is_video else PeAudioConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            own = getattr(config, f"{medium}_config")
            own = getattr(own, f"{medium}_config") if has_both else own
            encoder: Any = picture.PeVideoEncoder if is_video else sound.PeAudioEncoder
            head: Any = picture.PeVideoContrastiveHead if is_video else sound.PeAudioContrastiveHead
            setattr(self, f"{medium}_encoder", encoder(own))
            setattr(self, f"{medium}_head", head(own.hidden_size, config.text_config.hidden_size))
            self.post_init()

        @property
        def encoder(self) -> nn.Module:
            module: nn.Module = getattr(self, f"{medium}_encoder")
            return module

        @property
        def head(self) -> nn.Module:
            module: nn.Module = getattr(self, f"{medium}_head")
            return module

    return Side
