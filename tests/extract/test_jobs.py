"""Batches become the rows of a shard."""

from pathlib import Path

import numpy as np

from alphafuse.data.manifest import Clip
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.extract.jobs import Batch, Job, join_batches


def test_a_window_ends_with_the_clip_and_is_unknown_as_a_whole_if_the_duration_is(tmp_path: Path) -> None:
    jobs = tuple(Job(Clip(name, f"{name}.mp4", "dog", "train", name), tmp_path, ("ast",)) for name in ("a", "b"))
    batch = Batch(
        jobs=jobs,
        rows={"ast": np.ones((2, 3), np.float32)},
        failures=(),
        seconds=np.array([2.5, np.nan]),
        file_bytes=np.array([7, -1]),
        digests=np.array(["0" * 64, ""]),
        decode_seconds=0.0,
        embed_seconds=0.0,
    )
    rows = join_batches([batch], {"ast": {"dim": 3}})
    np.testing.assert_array_equal(rows.windows, [[0.0, 2.5], [np.nan, np.nan]])
    store = EmbeddingStore(tmp_path / "store")
    store.write(rows, provenance={})
    assert store.verify() == []
