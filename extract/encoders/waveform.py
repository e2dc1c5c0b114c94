"""Audio encoders on samples: wav2vec 2.0, HuBERT and WavLM.

Clips of different lengths aren't padded: clips of one length are embedded together, so that an embedding doesn't
depend on the other clips of its batch. Option `seconds`: how much of a clip's start is heard; 30 by default, because
attention grows with the square of the length and the authors trained on at most that much.

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

from .encoder import Encoder, Placement, freeze, load_pretrained
from .image import pooled
from .inputs import chosen_pool, chosen_samples, heard, make_extractor, settings_of

SECONDS = 30
WAV2VEC2 = {"sampling_rate": 16_000, "do_normalize": True}


def load_wav2vec2(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load a wav2vec 2.0, HuBERT or WavLM, without the head of a fine-tuned one.

    The embedding is the mean of the last layer's tokens over the clip's time. The authors publish none: they train a
    classifier on every token, or (SUPERB) learn weights of layers per task and average over time.

    Raises:
        EncoderError: it can't be loaded, lacks weights, or an option or a setting isn't possible.
    """
    from transformers import AutoModel

    model, config, preprocessor = load_pretrained(stream, AutoModel, optional=("masked_spec_embed",))
    extractor = make_extractor("Wav2Vec2FeatureExtractor", preprocessor, WAV2VEC2)
    samples = chosen_samples(stream, extractor.sampling_rate, default_seconds=SECONDS)
    pool = chosen_pool(stream, ("mean",))
    return freeze(
        stream,
        model,
        partial(PooledSound, pool=pool),
        spec=heard(extractor, samples, least_samples(config.conv_kernel, config.conv_stride)),
        prepare=partial(sound_inputs, extractor=extractor),
        placement=placement,
        dim=config.output_hidden_size if getattr(config, "add_adapter", False) else None,
        details={"pool": pool, "over": "time of the clip", **settings_of(extractor, WAV2VEC2)},
    )


def least_samples(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Return the samples of which convolutions make one token.

    >>> least_samples((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
    400
    """
    samples = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def sound_inputs(waveforms: Sequence[np.ndarray], extractor: Any, *, device: torch.device) -> list[torch.Tensor]:
    """Map waveforms, (samples,) float32 each, to what HuggingFace's extractor makes of each alone, (1, ...) float32."""
    rate, name = extractor.sampling_rate, extractor.model_input_names[0]
    made = (extractor(waveform, sampling_rate=rate, return_tensors="pt")[name] for waveform in waveforms)
    return [values.to(device) for values in made]


class PooledSound(nn.Module):
    """An audio model up to its pooled output."""

    def __init__(self, model: Any, pool: str, head: nn.Module | None = None) -> None:
        """Take over a model of `transformers`; `pool` as in `pooled`, `head` is applied to the pooled output."""
        super().__init__()
        self.model, self._pool, self.head = model, pool, head or nn.Identity()

    def forward(self, sounds: list[torch.Tensor]) -> torch.Tensor:
        """Map the result of `sound_inputs`, of b clips, to (b, d) float32."""
        embeddings: dict[int, torch.Tensor] = {}
        for shape in {values.shape for values in sounds}:
            places = [i for i, values in enumerate(sounds) if values.shape == shape]
            output = self.model(torch.cat([sounds[i] for i in places]))
            embeddings.update(zip(places, self.head(pooled(output, self._pool)), strict=True))
        return torch.stack([embeddings[i] for i in range(len(sounds))])
