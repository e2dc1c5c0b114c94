"""The work of one split: its clips, its store, and the one function that decides what is left to do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from alphafuse.data.columns import AT_ONCE
from alphafuse.data.dataset import Dataset

from .jobs import Jobs


class Work:
    """The jobs that the store of a split lacks; picklable, so that it can be sent to another process.

    Attributes:
        split: "train", "val" or "test".
        clip_folder: folder of the clips' files.
        store: store of the embeddings; one object, so that each shard is read only once to find finished clips.
        recipes: stream -> everything that decides its numbers.
    """

    def __init__(
        self, dataset: Dataset, split: str, recipes: Mapping[str, Mapping[str, Any]], *, retry_failed: bool = False
    ) -> None:
        """Read the split, and check its store's recipes.

        Args:
            dataset: the root.
            split: "train", "val" or "test".
            recipes: stream -> everything that decides its numbers; every clip needs these streams.
            retry_failed: also retry clips whose failure is recorded.

        Raises:
            EmptySplitError: the split has no clips.
            RecipeMismatchError: the store was made with other recipes.
        """
        clips = dataset.manifest.require_split(split)
        self.split, self.clip_folder, self.recipes = split, dataset.clip_folder, recipes
        self.store = dataset.store(split)
        self.store.require_recipes(recipes)
        self._retry_failed = retry_failed
        self._everything = Jobs(clips, dataset, {stream: np.ones(len(clips), bool) for stream in recipes})

    def __repr__(self) -> str:
        return f"Work({self.split}, {self.clips} clips, {self.store!r})"

    @property
    def clips(self) -> int:
        """Number of clips of the split."""
        return len(self._everything)

    @cached_property
    def jobs(self) -> Jobs:
        """Jobs that the store lacked at the first access."""
        return self.missing(self._everything)

    def missing(self, jobs: Jobs, *, look: bool = True) -> Jobs:
        """Return the jobs that are left, each with the streams that the store lacks.

        Args:
            jobs: some jobs of the split.
            look: list the store again for shards of other writers; if False, the last listing counts.
        """
        lacking = {stream: np.ones(len(jobs), bool) for stream in self.recipes}
        for start in range(0, len(jobs), AT_ONCE):
            clip_ids = jobs.clips.clip_ids.strings(start, start + AT_ONCE)
            finished = self.store.finished(
                streams=tuple(self.recipes), retry_failed=self._retry_failed, among=clip_ids, look=look
            )
            for stream, mask in lacking.items():
                mask[start : start + len(clip_ids)] = [clip_id not in finished[stream] for clip_id in clip_ids]
        return jobs.restricted_to(lacking)
