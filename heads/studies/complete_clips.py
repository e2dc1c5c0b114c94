"""Clips that have all streams: what studies in closed form train and score on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alphafuse.data.dataset import Dataset
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.data.streams import in_order
from alphafuse.errors import EmptySplitError, ExperimentError
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import memory_bytes

from .same_clips import provenance_of


@dataclass(frozen=True)
class CompleteClips:
    """The clips of some splits that have all of some streams.

    Attributes:
        embeddings: split -> embeddings; splits that exceed the memory stay on disk.
        dropped: split -> number of clips left out because they lack a stream.
        streams: the streams, in order.
        provenance: inputs of a study of these clips, for config.json.
    """

    embeddings: Mapping[str, EmbeddingSource]
    dropped: Mapping[str, int]
    streams: tuple[str, ...]
    provenance: Mapping[str, Any]

    @classmethod
    def load(cls, dataset: Dataset, splits: Sequence[str], streams: Sequence[str] = ()) -> CompleteClips:
        """Read the clips; by default of all streams that are extracted.

        Raises:
            EmptySplitError: a split has no such clip.
            ExperimentError: a named stream isn't extracted.
            DatasetError, StoreError: an unknown stream, splits that are empty or not extracted.
        """
        for stream in streams:
            dataset.stream(stream)
        memory = memory_bytes(TrainSettings(), torch.device("cpu"))
        read = dataset.all_embeddings(splits=splits, streams=streams, max_bytes=memory // 2)
        first = read[splits[0]]
        absent = [stream for stream in streams if stream not in first.dims]
        if absent:
            raise ExperimentError(
                f"the clips have no {absent[0]} embeddings yet: run `alphafuse extract --split all --stream "
                f"{absent[0]} --root {dataset.root}`, or name other streams with --stream"
            )
        names = tuple(in_order(set(streams) or first.dims))
        kept: dict[str, EmbeddingSource] = {}
        dropped = {}
        for split, embeddings in read.items():
            usable = np.logical_and.reduce([embeddings.present(stream) for stream in names])
            if not usable.any():
                raise EmptySplitError(
                    f"none of the {len(embeddings)} {split} clips has embeddings of {' and '.join(names)}: see "
                    "`alphafuse store info`, or name other streams with --stream"
                )
            kept[split] = embeddings if usable.all() else embeddings.take(usable)
            dropped[split] = int((~usable).sum())
        return cls(kept, dropped, names, provenance_of(dataset, splits[0], first))

    @property
    def counts(self) -> dict[str, int]:
        """split -> number of clips."""
        return {split: len(embeddings) for split, embeddings in self.embeddings.items()}
