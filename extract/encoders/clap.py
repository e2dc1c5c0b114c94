"""CLAP's audio side: spectrograms at 48 kHz, by HuggingFace's feature extractor, clip by clip.

Option `seconds`: hear only this much of a clip's start. Shapes: b clips, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from alphafuse.data.coverage import Hearing
from alphafuse.data.streams import Stream

from .encoder import Encoder, Placement, freeze, load_pretrained
from .hub import architectures
from .image import pooled
from .inputs import chosen_pool, chosen_samples, heard, make_extractor, require_equal, settings_of

CLAP: dict[str, Any] = {"feature_size": 64, "sampling_rate": 48_000, "hop_length": 480, "fft_window_size": 1024}
CLAP |= {"frequency_min": 50, "frequency_max": 14_000, "max_length_s": 10}
CLAP |= {"truncation": "rand_trunc", "padding": "repeatpad"}  # laion/clap-htsat-unfused; fused: "fusion"


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
    require_equal(stream, "mel bins", extractor.feature_size, config.num_mel_bins)
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
        hearing=Hearing(samples / extractor.sampling_rate, extractor.nb_max_samples / extractor.sampling_rate),
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
