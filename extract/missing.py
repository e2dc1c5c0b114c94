"""The work of one split: its clips, its store, and the functions that decide what is left, and what is out of date.

A clip's file was changed if its bytes are not those that were stored with its embeddings. Every extraction compares
the sizes of files, which is a look into the folder; with `refresh`, it also reads the first and last 64 KB of files of
the same size and compares their digest (files behind URLs are compared by size alone). Times of files say nothing: a
copy has a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from alphafuse.data.columns import AT_ONCE
from alphafuse.data.dataset import Dataset
from alphafuse.errors import AlphafuseError
from alphafuse.system.files import file_digest, joined_digest
from alphafuse.system.remote import is_remote, local_copy

from .jobs import Jobs

COMPARED = 200_000  # clips whose files an extraction looks at: a second on a local disk, a minute on a slow network's


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


def changed_clips(dataset: Dataset, split: str, *, read: bool = False) -> tuple[str, ...]:
    """Return the clips of a split with another file than the one that was extracted.

    Args:
        dataset: the root.
        split: the split.
        read: also compare digests of local files of the same size; else sizes alone are compared, and of more than
            `COMPARED` clips that many, chosen at random.
    """
    clips, store = dataset.manifest.of_split(split), dataset.store(split)
    if not store.shards():
        return ()
    if len(clips) > COMPARED and not read:
        clips = clips.take(np.sort(np.random.default_rng().choice(len(clips), COMPARED, replace=False)))
    by_id = {clip_id: place for place, clip_id in enumerate(clips.clip_ids)}

    def digest_of(clip_id: str) -> str:
        digests = []
        for path in dataset.paths_of(clips[by_id[clip_id]]):
            try:
                with local_copy(path) as file:
                    digests.append(file_digest(file)[1])
            except (OSError, AlphafuseError):
                return ""
        return joined_digest(digests)

    compare = digest_of if read and not is_remote(dataset.clip_folder) else None
    return tuple(store.changed(dataset.file_sizes(clips), compare))
