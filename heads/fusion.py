"""Fusion: the transformed vectors of the modalities become the one vector that the head's layers read.

A fusion is a layer built from the modalities' dimensions; `FUSIONS` names them all. A new one is a class here with its
formula and source in the docstring, and one line in the dict.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from alphafuse.data.store import MODALITIES
from alphafuse.errors import ExperimentError, unknown


class Fusion(nn.Module):
    """What every fusion has.

    Args:
        dims: modality -> dimension of its embeddings, for the modalities that the head reads.

    Attributes:
        modalities: those modalities in the order of `MODALITIES`, whatever the order of `dims`.
        output_dim: length of the fused vector.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.modalities = tuple(modality for modality in MODALITIES if modality in dims)
        self.output_dim = 0

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw initial parameters from the generator; a fusion without parameters draws nothing."""

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Fuse {modality: (batch, dim)} into (batch, output_dim)."""
        raise NotImplementedError


class Concat(Fusion):
    """cat(S, A): TimeSformer's vector, then AST's (paper section 3); with one modality, that vector itself."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.output_dim = sum(dims[modality] for modality in self.modalities)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """{modality: (batch, dim)} -> (batch, sum of dims)."""
        return torch.cat([features[modality] for modality in self.modalities], dim=-1)


FUSIONS: dict[str, type[Fusion]] = {
    "concat": Concat,
}


def build_fusion(name: str, dims: Mapping[str, int]) -> Fusion:
    """The fusion of that name for these dimensions; `ExperimentError` for an unknown name."""
    if name not in FUSIONS:
        raise ExperimentError(unknown("fusion", name, FUSIONS))
    return FUSIONS[name](dims)
