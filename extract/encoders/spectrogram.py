"""Audio encoders on spectrograms: CLAP and the encoder of Whisper. (AST, with a fast forward pass, is in `ast`.)

HuggingFace's feature extractors compute the spectrograms, clip by clip, so that an embedding doesn't depend on the
other clips of its batch. Option `seconds`: hear only this much of a clip's start.

Shapes: b clips, n tokens, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from alphafuse.data.streams import Stream
from alphafuse.errors import EncoderError

from .encoder import Encoder, Placement, freeze, load_pretrained
from .hub import architectures
from .image import pooled
from .inputs import chosen_pool, chosen_samples, heard, make_extractor, settings_of

CLAP: dict[str, Any] = {"feature_size": 64, "sampling_rate": 48_000, "hop_length": 480, "fft_window_size": 1024}
CLAP |= {"frequency_min": 50, "frequency_max": 14_000, "max_length_s": 10}
CLAP |= {"truncation": "rand_trunc", "padding": "repeatpad"}  # laion/clap-htsat-unfused; fused: "fusion"
WHISPER: dict[str, Any] = {"feature_size": 80, "sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30}
WHISPER |= {"n_fft": 400, "padding_value": 0.0}
WHISPER_ENCODER = {r"^(model\.)?encoder\.": ""}  # names of weights in a whole Whisper -> in its encoder


def load_clap(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load the audio side of a CLAP; it hears the first 10 s (`max_length_s`) of a clip, at 48 kHz.

    HuggingFace's extractor takes random parts of longer clips; here they are cut before, so nothing is random. Shorter
    clips are repeated and padded, as the checkpoint says. A model with fusion hears each clip as it hears one alone.

    Option `pool`: "projection", the published audio embedding (not normalised to length 1); or "pooler", before the
    projection, which is all that a `ClapAudioModel` has.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import ClapAudioModel, ClapAudioModelWithProjection

    projects = "ClapAudioModel" not in architectures(stream)
    pool = chosen_pool(stream, ("projection", "pooler") if projects else ("pooler",))
    model, config, preprocessor = load_pretrained(stream, ClapAudioModelWithProjection if projects else ClapAudioModel)
    extractor = make_extractor("ClapFeatureExtractor", preprocessor, CLAP)
    _require_equal(stream, "mel bins", extractor.feature_size, config.num_mel_bins)
    samples = chosen_samples(stream, extractor.sampling_rate, extractor.nb_max_samples)
    return freeze(
        stream,
        model.audio_model if projects and pool == "pooler" else model,
        partial(PooledClap, pool=pool),
        spec=heard(extractor, samples),
        prepare=partial(clap_inputs, extractor=extractor),
        placement=placement,
        dim=config.projection_dim if pool == "projection" else config.hidden_size,
        details={"pool": pool, **settings_of(extractor, CLAP)},
    )


def clap_inputs(waveforms: Sequence[np.ndarray], extractor: Any, *, device: torch.device) -> dict[str, torch.Tensor]:
    """Map waveforms, (samples,) float32 each, to `input_features` (b, 1 or 4, frames, mel bins) and `is_longer`."""
    rate = extractor.sampling_rate
    made = [extractor(waveform, sampling_rate=rate, return_tensors="pt") for waveform in waveforms]
    return {name: torch.cat([one[name] for one in made]).to(device) for name in ("input_features", "is_longer")}


class PooledClap(nn.Module):
    """CLAP's audio model up to its pooled output."""

    def __init__(self, model: Any, pool: str) -> None:
        """Take over a model of `transformers`; `pool` as in `pooled`."""
        super().__init__()
        self.model, self._pool = model, pool

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Map the result of `clap_inputs` to (b, d) float32."""
        return pooled(self.model(**inputs), self._pool)


def load_whisper(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load the encoder of a Whisper; it hears the first 30 s (`chunk_length`) of a clip, at 16 kHz.

    The embedding is the mean of the encoder's tokens over the clip's own time. Whisper publishes none: its decoder
    attends to all tokens. Padded silence, which fills up to 30 s, isn't averaged, because a clip of 10 s would be two
    thirds silence. `dither`, which adds noise, is not used.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    model, config, preprocessor = load_pretrained(stream, WhisperEncoder, key_mapping=WHISPER_ENCODER)
    published = {**WHISPER, "feature_size": config.num_mel_bins}
    extractor = make_extractor("WhisperFeatureExtractor", {**preprocessor, "dither": 0.0}, published)
    _require_equal(stream, "mel bins", extractor.feature_size, config.num_mel_bins)
    _require_equal(stream, "frames", extractor.nb_max_frames, 2 * config.max_source_positions)
    samples = chosen_samples(stream, extractor.sampling_rate, extractor.n_samples)
    pool = chosen_pool(stream, ("mean",))
    return freeze(
        stream,
        model,
        WhisperMean,
        spec=heard(extractor, samples),
        prepare=partial(whisper_inputs, extractor=extractor),
        placement=placement,
        dim=config.d_model,
        details={"pool": pool, "tokens": "ceil(samples / (2 hop_length))", **settings_of(extractor, WHISPER)},
    )


def whisper_inputs(waveforms: Sequence[np.ndarray], extractor: Any, *, device: torch.device) -> dict[str, torch.Tensor]:
    """Map waveforms, (samples,) float32 each, to `input_features` (b, mel bins, frames) and the tokens of each clip.

    A token stands for two hops; the last one may be partly padded.
    """
    rate, hop = extractor.sampling_rate, extractor.hop_length
    made = [extractor(waveform, sampling_rate=rate, return_tensors="pt") for waveform in waveforms]
    tokens = torch.tensor([-(-min(len(waveform), extractor.n_samples) // (2 * hop)) for waveform in waveforms])
    features = torch.cat([one["input_features"] for one in made])
    return {"input_features": features.to(device), "tokens": tokens.to(device)}


class WhisperMean(nn.Module):
    """Whisper's encoder, and the mean of its tokens over the clip's own time."""

    def __init__(self, model: Any) -> None:
        """Take over a `WhisperEncoder` of `transformers`."""
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Map the result of `whisper_inputs` to (b, d) float32."""
        states = self.model(inputs["input_features"]).last_hidden_state.float()  # (b, n, d)
        tokens = inputs["tokens"][:, None]
        is_real = torch.arange(states.shape[1], device=states.device) < tokens  # (b, n)
        return (states * is_real[..., None]).sum(dim=1) / tokens


def _require_equal(stream: Stream, what: str, made: int, taken: int) -> None:
    if made != taken:
        raise EncoderError(
            f"the preprocessor of {stream.encoder} makes {made} {what}, and its config.json takes {taken}: make them "
            "agree"
        )
