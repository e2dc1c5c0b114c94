"""Whisper's encoder: spectrograms at 16 kHz, by HuggingFace's feature extractor, clip by clip.

Option `seconds`: hear only this much of a clip's start. Shapes: b clips, n tokens, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from alphafuse.data.streams import Stream

from .encoder import Encoder, Placement, freeze, load_pretrained
from .inputs import chosen_pool, chosen_samples, heard, make_extractor, require_equal, settings_of

WHISPER: dict[str, Any] = {"feature_size": 80, "sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30}
WHISPER |= {"n_fft": 400, "padding_value": 0.0}
WHISPER_ENCODER = {r"^(model\.)?encoder\.": ""}  # names of weights in a whole Whisper -> in its encoder


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
    require_equal(stream, "mel bins", extractor.feature_size, config.num_mel_bins)
    require_equal(stream, "frames", extractor.nb_max_frames, 2 * config.max_source_positions)
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
