"""Embeddings in which one stream is that of other clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.toy import make_dataset

from alphafuse.heads.studies.permuted_stream import PermutedStream


def test_a_permuted_stream_is_that_of_the_partner_and_survives_taking_clips(tmp_path: Path) -> None:
    toy = make_dataset(tmp_path / "toy")
    rows = toy.embeddings("val")
    partners = np.roll(np.arange(len(rows)), 4)
    for source in (rows, toy.store("val").open_rows()):
        moved = PermutedStream.of(source, "ast", partners)
        some = moved.take(np.array([7, 2, 11]))
        read = some.read_rows(np.array([2, 0]))
        np.testing.assert_array_equal(read["ast"], rows.features["ast"][partners[[11, 7]]])
        np.testing.assert_array_equal(read["timesformer"], rows.features["timesformer"][[11, 7]])
        assert sorted(some.storage_order()) == [0, 1, 2] and list(some.labels) == [rows.labels[i] for i in (7, 2, 11)]
