"""Nearest neighbours equal scikit-learn's on concatenated embeddings, and the vote equals DINOv2's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from alphafuse.data.embeddings import Embeddings
from alphafuse.data.store.store import EmbeddingStore
from alphafuse.errors import ExperimentError
from alphafuse.heads.closed import neighbours as module
from alphafuse.heads.closed.neighbours import EMPTY, TEMPERATURE, K, Neighbours, vote

DIMS = {"ast": 5, "clap": 3, "dino": 8}
ALPHAS = np.array([[1, 1, 1], [0.5, 2, 1], [1, 0, 0], [0, 3, 0.1]])
CLASSES = ("a", "b", "c", "d")


def make(clips: int, seed: int, *, name: str = "r", dims: dict[str, int] = DIMS, per_group: int = 3) -> Embeddings:
    """Clips whose embeddings have a common mean far from 0, and tell their label a little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(CLASSES), size=clips)
    centres = {stream: np.random.default_rng(0).normal(size=(len(CLASSES), dim)) for stream, dim in dims.items()}
    features = {
        stream: (7 + centres[stream][labels] + rng.normal(size=(clips, dim))).astype(np.float32)
        for stream, dim in dims.items()
    }
    return Embeddings(
        clip_ids=tuple(f"{name}{i}" for i in range(clips)),
        labels=tuple(CLASSES[i] for i in labels),
        groups=tuple(f"{name}{i // per_group}" for i in range(clips)),
        features=features,
        recipes={stream: {"made": "up"} for stream in dims},
    )


def absent(embeddings: Embeddings, stream: str, clips: Sequence[int]) -> Embeddings:
    embeddings.features[stream][list(clips)] = np.nan
    return embeddings


def concatenated(embeddings: Embeddings, references: Embeddings, alphas: np.ndarray) -> np.ndarray:
    """(clips, all dims) float64: centred unit vectors of each stream at length alpha; zeros where absent."""
    parts = []
    for alpha, (stream, rows) in zip(alphas, sorted(embeddings.features.items()), strict=True):
        centred = rows.astype(np.float64) - np.nanmean(references.features[stream].astype(np.float64), axis=0)
        parts.append(np.nan_to_num(alpha * centred / np.linalg.norm(centred, axis=1, keepdims=True)))
    return np.hstack(parts)


@pytest.mark.parametrize("alphas", ALPHAS)
def test_neighbours_are_scikit_learns_of_scaled_concatenated_embeddings(alphas: np.ndarray) -> None:
    references, queries = make(700, 1), make(40, 2, name="q")
    found = Neighbours(references).nearest(queries, alphas[None], k=6)
    searched = NearestNeighbors(n_neighbors=6, metric="cosine").fit(concatenated(references, references, alphas))
    distances, positions = searched.kneighbors(concatenated(queries, references, alphas))
    assert np.array_equal(found.positions[0], positions)
    np.testing.assert_allclose(found.similarities[0], 1 - distances, atol=2e-6)


def brute_force(
    references: Embeddings, queries: Embeddings, alphas: np.ndarray, k: int
) -> tuple[list[list[int]], list[list[float]]]:
    """One pair after the other, from the definition."""
    streams = sorted(references.features)
    means = {s: np.nanmean(references.features[s].astype(np.float64), axis=0) for s in streams}
    positions, similarities = [], []
    for q in range(len(queries)):
        pairs = []
        for r in range(len(references)):
            parts, total, shared = 0.0, 0.0, False
            for alpha, s in zip(alphas, streams, strict=True):
                a, b = queries.features[s][q] - means[s], references.features[s][r] - means[s]
                if np.isnan(a).any() or alpha == 0:
                    continue
                total += alpha**2
                if not np.isnan(b).any():
                    shared = True
                    parts += alpha**2 * float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            if shared and queries.groups[q] != references.groups[r]:
                pairs.append((-parts / total, r))
        pairs.sort()
        positions.append([r for _, r in pairs[:k]])
        similarities.append([-s for s, _ in pairs[:k]])
    return positions, similarities


def test_clips_without_a_stream_are_compared_as_the_definition_says() -> None:
    references, queries = make(150, 3), make(12, 4, name="q")
    absent(references, "ast", range(0, 150, 4))
    absent(references, "clap", range(0, 150, 8))
    absent(references, "dino", range(0, 150, 8))  # every eighth has none at all
    absent(queries, "ast", (0, 1))
    absent(queries, "dino", (1, 2))
    absent(queries, "clap", (1, 3))  # clip 1 has none
    found = Neighbours(references).nearest(queries, ALPHAS, k=7)
    for candidate, alphas in enumerate(ALPHAS):
        positions, similarities = brute_force(references, queries, alphas, 7)
        for query in range(len(queries)):
            n = len(positions[query])
            assert found.positions[candidate, query].tolist() == positions[query] + [-1] * (7 - n)
            np.testing.assert_allclose(found.similarities[candidate, query][:n], similarities[query], atol=2e-6)
            assert np.isnan(found.similarities[candidate, query][n:]).all()
    assert (found.positions[:, 1] == -1).all() and (found.positions[2, 0] == -1).all()


def test_clips_of_the_querys_source_video_are_left_out() -> None:
    references = make(60, 5, per_group=4)
    found = Neighbours(references).nearest(references, ALPHAS, k=60)
    groups = np.array(references.groups)
    for places in found.positions:
        for query, row in enumerate(places):
            others = row[row >= 0]
            assert sorted(others) == np.flatnonzero(groups != groups[query]).tolist(), "all but its own four"
    assert brute_force(references, references, ALPHAS[1], 9)[0] == found.positions[1, :, :9].tolist()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    references, queries = make(500, 6), make(50, 7, name="q")
    absent(references, "clap", range(0, 500, 5))
    monkeypatch.setattr(module, "FIRST_ROWS", 10_000)
    whole = Neighbours(references).nearest(queries, ALPHAS, k=9)
    for first, most, at_once in ((1, 7, 3), (16, 64, 17)):
        monkeypatch.setattr(module, "FIRST_ROWS", first)
        monkeypatch.setattr(module, "ROWS_AT_ONCE", most)
        monkeypatch.setattr(module, "QUERIES_AT_ONCE", at_once)
        parts = Neighbours(references).nearest(queries, ALPHAS, k=9)
        assert np.array_equal(parts.positions, whole.positions)
        np.testing.assert_allclose(parts.similarities, whole.similarities, atol=1e-6)


def test_a_store_on_disk_and_several_sources_give_what_one_in_memory_gives(tmp_path: Path) -> None:
    references, queries = make(90, 8), make(10, 9, name="q")
    absent(references, "dino", range(0, 90, 6))
    shuffled = np.random.default_rng(0).permutation(90)
    store = EmbeddingStore(tmp_path / "store")
    for part in (shuffled[:50], shuffled[50:]):
        store.write(references.take(part))
    on_disk, in_memory = store.open_rows(), references.take(shuffled)
    assert list(on_disk.clip_ids) == list(in_memory.clip_ids)
    expected = Neighbours(in_memory).score(queries, ALPHAS, CLASSES)
    for neighbours in (Neighbours(on_disk), Neighbours(in_memory.take(np.arange(30)), on_disk.take(np.arange(30, 90)))):
        scores = neighbours.score(queries, ALPHAS, CLASSES)
        assert np.array_equal(scores.correct, expected.correct)
        np.testing.assert_allclose(scores.loss, expected.loss, atol=1e-5)
        nearest = neighbours.nearest(queries, ALPHAS[:1], k=4)
        parts = neighbours.parts(queries, ALPHAS[0], nearest.positions[0])
        np.testing.assert_allclose(np.nan_to_num(parts).sum(axis=-1), nearest.similarities[0], atol=1e-6)
        assert np.array_equal(np.isnan(parts[..., 2]), ~in_memory.present("dino")[nearest.positions[0]])


def dinov2_probabilities(similarities: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """As in DINOv2's KnnModule: softmax over the nearest, summed per class."""
    weights = torch.softmax(similarities / 0.07, 1)
    return (torch.nn.functional.one_hot(labels, classes) * weights[..., None]).sum(1)


def test_the_vote_is_dinov2s_and_its_scores_follow() -> None:
    references, queries = make(300, 10), make(80, 11, name="q")
    neighbours = Neighbours(references)
    found = neighbours.nearest(queries, ALPHAS)
    scores = neighbours.score(queries, ALPHAS, CLASSES)
    labels = np.array([CLASSES.index(label) for label in references.labels])
    targets = np.array([CLASSES.index(label) for label in queries.labels])
    for candidate in range(len(ALPHAS)):
        voters = labels[found.positions[candidate]]
        expected = dinov2_probabilities(torch.from_numpy(found.similarities[candidate]), torch.from_numpy(voters), 4)
        np.testing.assert_allclose(vote(found.similarities[candidate], voters, 4), expected, atol=1e-5)
        assert np.array_equal(scores.correct[candidate], expected.argmax(1).numpy() == targets)
        own = expected[np.arange(80), targets].numpy()
        np.testing.assert_allclose(scores.loss[candidate], -np.log((K * own + 0.25) / (K + 1)), atol=1e-5)
    assert (scores.voters == K).all() and scores.loss.max() <= np.log((K + 1) * 4)
    assert scores.correct[0].mean() > 0.6 and TEMPERATURE == 0.07


def test_few_references_equal_clips_and_no_neighbour_at_all_are_no_error() -> None:
    two, queries = make(2, 12), make(3, 13, name="q")
    same = Neighbours(absent(two, "ast", (0,)).take(np.array([0, 0, 0])))  # three times one clip, which is the mean
    assert same.streams == ("clap", "dino")
    found = same.nearest(queries, [[1, 1]], k=5)
    assert found.positions[0].tolist() == [[0, 1, 2, -1, -1]] * 3 and not found.similarities[0, :, :3].any()
    scores = Neighbours(make(6, 14, per_group=6)).score(make(6, 14, per_group=6), ALPHAS[:1], CLASSES)
    assert not scores.correct.any() and (scores.voters == 0).all()
    np.testing.assert_allclose(scores.loss, np.log(4))
    assert Neighbours(two).nearest(queries.take(np.zeros(3, bool)), ALPHAS).positions.shape == (4, 0, K)
    assert EMPTY < -1


def test_wrong_arguments_are_one_line_errors() -> None:
    neighbours = Neighbours(make(9, 15))
    with pytest.raises(ExperimentError, match="unknown stream 'asd' \\(did you mean 'ast'"):
        Neighbours(make(9, 15), streams=["asd"])
    with pytest.raises(ExperimentError, match="none of the 9 reference clips has an embedding of ast"):
        Neighbours(absent(make(9, 15), "ast", range(9)), streams=["ast"])
    for alphas, words in (([[1, 1]], "shape"), ([[0, 0, 0]], "above 0"), ([[1, -1, 1]], "finite numbers")):
        with pytest.raises(ExperimentError, match=words):
            neighbours.nearest(make(2, 16), alphas)
    with pytest.raises(ExperimentError, match="at least 1, not 0"):
        neighbours.nearest(make(2, 16), ALPHAS, k=0)
    with pytest.raises(ExperimentError, match="temperature must be above 0"):
        neighbours.score(make(2, 16), ALPHAS, CLASSES, temperature=0)
