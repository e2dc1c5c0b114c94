"""The full-size encoders with random weights, to measure speed without downloading trained weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from alphafuse.data.streams import DEFAULT_STREAMS
from alphafuse.extract.decoding.specs import FrameSpec
from alphafuse.extract.encoders.ast import SpectrogramSpec, freeze_ast
from alphafuse.extract.encoders.encoder import Encoder, Placement
from alphafuse.extract.encoders.timesformer import freeze_timesformer


def random_encoders(placement: Placement | None = None) -> dict[str, Encoder]:
    """Return both full-size encoders with random weights."""
    placement = placement or Placement()
    models = random_models()
    frame_spec = FrameSpec.from_config({}, frames=8, image_size=224)
    audio_spec = SpectrogramSpec.from_config({}, mel_bins=128, max_length=1024)
    sight, sound = (replace(stream, encoder="random") for stream in DEFAULT_STREAMS)
    return {
        sight.name: freeze_timesformer(sight, models["timesformer"], frame_spec, placement),
        sound.name: freeze_ast(sound, models["ast"], audio_spec, placement),
    }


def random_models() -> dict[str, nn.Module]:
    """Return HuggingFace's full-size models with random weights from a fixed seed."""
    from transformers import ASTConfig, ASTModel, TimesformerConfig, TimesformerModel

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return {"timesformer": TimesformerModel(TimesformerConfig()).eval(), "ast": ASTModel(ASTConfig()).eval()}
