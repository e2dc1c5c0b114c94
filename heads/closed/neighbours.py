"""Nearest neighbours: the reference clips that are most like a clip, and the vote of their labels.

    similarity of two clips = sum over streams of alpha_s^2 cosine_s,  where the alpha_s^2 sum to 1

This is the cosine of two concatenations in which stream s is scaled to length alpha_s, so alphas are the metric and
nothing else: if their squares had another sum, they would also change the temperature of the vote. Embeddings are
centred, by the mean of the reference clips, before they are normalised; otherwise all clips point the same way.
Clips of the query's own source video (its group) are never among its neighbours.

A query that lacks a stream is compared by the streams that it has, and their alpha_s^2 sum to 1. A reference that lacks
a stream of the query gets 0 for it, as if its embedding were the mean: it can't gain a place by what is unknown of it.
A reference that shares no stream with the query is no neighbour.

The vote is that of DINOv2's evaluation (facebookresearch/dinov2, dinov2/eval/knn.py, which doesn't centre): the k = 20
nearest references vote for their labels, each with a weight of exp(similarity / 0.07).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alphafuse.data.embeddings import ROWS_AT_ONCE, finite_rows
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.data.streams import in_order
from alphafuse.errors import ExperimentError, unknown
from alphafuse.heads.training.train import class_indices
from alphafuse.system.progress import NO_PROGRESS, Progress

K = 20
TEMPERATURE = 0.07
QUERIES_AT_ONCE = 1024  # clips that are compared with all references in one pass over them
FIRST_ROWS = 128  # of the references; the first blocks are small, because after them few pairs need a second look
EMPTY = -2.0  # in place of a similarity: there is no such neighbour
ROUNDING = 1e-6  # of float32


@dataclass(frozen=True)
class Nearest:
    """The nearest references of some queries, for several weightings of the streams ("candidates").

    Attributes:
        positions: (candidates, queries, k) int64: positions of the references, nearest first; -1 = there are fewer.
        similarities: (candidates, queries, k) float32 in [-1, 1]; NaN where there is no neighbour.
    """

    positions: np.ndarray
    similarities: np.ndarray


@dataclass(frozen=True)
class VoteScores:
    """How often the vote is right.

    Attributes:
        correct: (candidates, queries) bool: whether the label with the most votes is the query's; False without voters.
        loss: (candidates, queries) float64, in nats, of (n vote + 1 / C) / (n + 1): one vote more, spread over the C
            classes, so that a label without votes has no infinite loss; n is the number of voters. It is at most
            ln((n + 1) C).
        voters: (candidates, queries) int64: the number of neighbours, k unless there are fewer.
    """

    correct: np.ndarray
    loss: np.ndarray
    voters: np.ndarray


@dataclass(frozen=True)
class _Units:
    """Centred embeddings of some clips at length 1.

    Attributes:
        vectors: per stream (clips, dim) float32; zeros where the embedding is absent, or equals the mean.
        present: (clips, streams) bool.
    """

    vectors: list[np.ndarray]
    present: np.ndarray


class Neighbours:
    """The reference clips among which neighbours are searched.

    They are read in blocks, once for the means and once per 1024 queries, so memory depends neither on their number
    (if they stay on disk; beside a few bytes per clip) nor on that of the queries.

    Attributes:
        references: the clips; positions in results number them one source after the other.
        streams: the streams that are compared, in order.
        means: stream -> (dim,) float64, the mean over the references that have it.

    >>> from alphafuse import Dataset
    >>> dataset = Dataset.open("demo")
    >>> neighbours = Neighbours(dataset.embeddings("train"))
    >>> neighbours.streams
    ('timesformer', 'ast')
    >>> alphas = [[1, 1], [1, 0]]  # alike; the first stream alone
    >>> scores = neighbours.score(dataset.embeddings("val"), alphas, dataset.classes)
    >>> scores.correct.shape, scores.correct.mean(axis=1).round(1).tolist()
    ((2, 26), [...])
    """

    def __init__(self, *references: EmbeddingSource, streams: Sequence[str] = ()) -> None:
        """Compute the means of these clips, from one or more sources with the same recipes.

        Args:
            references: the clips.
            streams: streams to compare; () = all of which a reference has an embedding.

        Raises:
            ExperimentError: there is no reference with an embedding of a named stream, or of any.
        """
        self.references = references
        self._starts = np.cumsum([0, *map(len, references)])
        stored = in_order({name for source in references for name in source.dims})
        for name in streams:
            if name not in stored:
                raise ExperimentError(unknown("stream", name, stored))
        self.streams = tuple(in_order(set(streams or stored)))
        self.means = self._means()
        absent = [name for name in self.streams if name not in self.means]
        if absent and (streams or not self.means):
            raise ExperimentError(f"none of the {len(self)} reference clips has an embedding of {absent[0]}")
        self.streams = tuple(self.means)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"Neighbours({len(self)} reference clips, {', '.join(self.streams)})"

    def clip_id(self, position: int) -> str:
        """Return the clip_id of the reference at a position."""
        source = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self.references[source].clip_ids[position - int(self._starts[source])]

    def nearest(self, queries: EmbeddingSource, alphas: np.ndarray | Sequence[Sequence[float]], k: int = K) -> Nearest:
        """Find the k nearest references of each query, for each candidate.

        Equally near references are in the order of their positions.

        Args:
            queries: clips; those that also are references are not their own neighbours.
            alphas: (candidates, streams), 0 or more, in the order of `streams`; only their ratios count.
            k: number of neighbours, at least 1.

        Raises:
            ExperimentError: alphas or k are invalid.
        """
        shares = shares_of(alphas, self.streams)
        parts = [self._nearest(some, shares, k) for _, some in _blocks_of(queries)]
        if not parts:
            return Nearest(np.empty((len(shares), 0, k), np.int64), np.empty((len(shares), 0, k), np.float32))
        positions, similarities = (
            np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("positions", "similarities")
        )
        return Nearest(positions, similarities)

    def score(
        self,
        queries: EmbeddingSource,
        alphas: np.ndarray | Sequence[Sequence[float]],
        classes: Sequence[str],
        *,
        k: int = K,
        temperature: float = TEMPERATURE,
        progress: Progress = NO_PROGRESS,
    ) -> VoteScores:
        """Let the k nearest references of each query vote for its label, for each candidate.

        The similarities of a stream are computed once, whatever the number of candidates.

        Args:
            queries: clips with labels.
            alphas: (candidates, streams), as in `nearest`.
            classes: labels; those of references and queries are among them.
            k: number of voters.
            temperature: of the votes, above 0.
            progress: only `advance` is called, with scored queries.

        Raises:
            ExperimentError: an argument is invalid, or a label isn't among the classes.
        """
        if not temperature > 0:
            raise ExperimentError(f"temperature must be above 0, not {temperature}")
        shares = shares_of(alphas, self.streams)
        labels = np.concatenate([class_indices(source.labels, classes) for source in self.references])
        targets = class_indices(queries.labels, classes)
        shape = (len(shares), len(queries))
        correct, loss, voters = np.zeros(shape, bool), np.zeros(shape), np.zeros(shape, np.int64)
        for positions, some in _blocks_of(queries):
            found, target = self._nearest(some, shares, k), targets[positions]
            for candidate, places in enumerate(found.positions):
                voted = np.where(places >= 0, labels[places], -1)
                votes = vote(found.similarities[candidate], voted, len(classes), temperature)
                n = (places >= 0).sum(axis=1)
                correct[candidate, positions] = (votes.argmax(axis=1) == target) & (n > 0)
                own = votes[np.arange(len(target)), target]
                loss[candidate, positions] = -np.log((n * own + 1 / len(classes)) / (n + 1))
                voters[candidate, positions] = n
            progress.advance(len(positions))
        return VoteScores(correct, loss, voters)

    def parts(self, queries: EmbeddingSource, alphas: Sequence[float], positions: np.ndarray) -> np.ndarray:
        """Return what each stream adds to the similarity of queries and some of the references.

        Args:
            queries: clips.
            alphas: (streams,), one candidate of `nearest`.
            positions: (queries, k) integers: positions of references, -1 = none.

        Returns:
            (queries, k, streams) float32, which sum to the similarities; NaN without a neighbour, or if one of the two
            lacks the stream, which then adds 0.
        """
        own = self._units(queries.read_rows(np.arange(len(queries))), len(queries))
        weights = _weights(shares_of([alphas], self.streams), own.present)[0]
        wanted = np.unique(positions[positions >= 0])
        theirs = self._units(self._read(wanted), len(wanted))
        result = np.full((*positions.shape, len(self.streams)), np.nan, np.float32)
        query, place = np.nonzero(positions >= 0)
        reference = np.searchsorted(wanted, positions[query, place])
        for stream in range(len(self.streams)):
            both = own.present[query, stream] & theirs.present[reference, stream]
            a, b = own.vectors[stream][query[both]], theirs.vectors[stream][reference[both]]
            cosines = np.einsum("ij,ij->i", a, b)
            result[query[both], place[both], stream] = weights[query[both], stream] * cosines
        return result

    def _nearest(self, queries: EmbeddingSource, shares: np.ndarray, k: int) -> Nearest:
        """Find the neighbours of as many queries as fit into memory, in one pass over the references."""
        if k < 1:
            raise ExperimentError(f"the number of neighbours must be at least 1, not {k}")
        own = self._units(queries.read_rows(np.arange(len(queries))), len(queries))
        weights = _weights(shares, own.present)  # (candidates, queries, streams)
        can_compare = weights.any(axis=2)
        codes = {group: code for code, group in enumerate(dict.fromkeys(queries.groups))}
        own_codes = np.array([codes[group] for group in queries.groups])
        shape = (*weights.shape[:2], k)
        kept, places = np.full(shape, EMPTY, np.float32), np.full(shape, -1, np.int64)
        for positions, rows, groups in self._blocks():
            theirs = self._units(rows, len(positions))
            cosines = np.stack([a @ b.T for a, b in zip(own.vectors, theirs.vectors, strict=True)])
            # a weighted mean is at most the largest cosine: most pairs can't enter any candidate's k nearest
            most = cosines.max(axis=0)  # (queries, rows)
            their_codes = np.array([codes.get(group, -1) for group in groups])
            if (their_codes >= 0).any():
                most[own_codes[:, None] == their_codes] = -np.inf
            least = np.where(can_compare, kept[:, :, -1], np.inf).min(axis=0)
            query, row = np.nonzero(most >= least[:, None] - ROUNDING)
            pairs, both = cosines[:, query, row], own.present[query] & theirs.present[row]
            for candidate, weight in enumerate(weights):
                its = weight[query]  # (pairs, streams)
                values = np.einsum("ps,sp->p", its, pairs)
                near = (values >= kept[candidate, query, -1]) & (both & (its > 0)).any(axis=1)
                _insert(kept[candidate], places[candidate], query[near], values[near], positions[row[near]])
        kept[places < 0] = np.nan
        return Nearest(places, kept)

    def _blocks(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], list[str]]]:
        """Yield all references, some at a time: their positions, stream -> (clips, dim), and their groups."""
        for start, source in zip(self._starts, self.references, strict=False):
            order, at, size = source.storage_order(), 0, FIRST_ROWS
            while at < len(order):
                some = order[at : at + size].astype(np.int64)
                yield start + some, source.read_rows(some), [source.groups[i] for i in some]
                at, size = at + size, min(2 * size, ROWS_AT_ONCE)

    def _read(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Read references by their positions, ascending: stream -> (positions, dim)."""
        parts = []
        for start, stop, source in zip(self._starts, self._starts[1:], self.references, strict=False):
            first, last = np.searchsorted(positions, (start, stop))
            rows = source.read_rows(positions[first:last] - start)
            absent = {name: np.full((last - first, len(self.means[name])), np.nan) for name in self.streams}
            parts.append({**absent, **rows})
        return {name: np.concatenate([part[name] for part in parts]) for name in self.streams}

    def _means(self) -> dict[str, np.ndarray]:
        """Return stream -> mean of the references that have it; streams that none has are left out."""
        sums: dict[str, np.ndarray] = {}
        counts = dict.fromkeys(self.streams, 0)
        for _, rows, _ in self._blocks():
            for name in self.streams:
                if name in rows:
                    there = rows[name][finite_rows(rows[name])].astype(np.float64)
                    sums[name] = sums.get(name, 0.0) + there.sum(axis=0)
                    counts[name] += len(there)
        return {name: sums[name] / count for name, count in counts.items() if count}

    def _units(self, rows: Mapping[str, np.ndarray], clips: int) -> _Units:
        """Centre and normalise embeddings; those that equal the mean up to rounding become zeros."""
        vectors, present = [], np.zeros((clips, len(self.streams)), bool)
        for place, name in enumerate(self.streams):
            mean = self.means[name]
            if name not in rows:
                vectors.append(np.zeros((clips, len(mean)), np.float32))
                continue
            there = finite_rows(rows[name])
            centred = np.where(there[:, None], rows[name], mean) - mean
            length = np.linalg.norm(centred, axis=1)
            differs = length > ROUNDING * np.linalg.norm(mean)
            vectors.append((centred / np.where(differs, length, np.inf)[:, None]).astype(np.float32))
            present[:, place] = there
        return _Units(vectors, present)


def shares_of(alphas: np.ndarray | Sequence[Sequence[float]], streams: Sequence[str]) -> np.ndarray:
    """Return alphas squared, with a sum of 1 per candidate: (candidates, streams) float64.

    Raises:
        ExperimentError: an alpha is negative or not finite, or all of a candidate are 0.

    >>> shares_of([[1, 1], [1, 0.5]], ("timesformer", "ast")).tolist()
    [[0.5, 0.5], [0.8, 0.2]]
    """
    given = np.asarray(alphas, np.float64)
    if given.ndim != 2 or given.shape[1] != len(streams):
        raise ExperimentError(f"alphas of shape {given.shape} don't fit: a candidate has {len(streams)} of them")
    if not np.isfinite(given).all() or (given < 0).any():
        raise ExperimentError("alphas must be finite numbers of 0 or more")
    largest = given.max(axis=1, keepdims=True)
    if (largest == 0).any():
        raise ExperimentError("at least one alpha must be above 0")
    squares = (given / largest) ** 2
    return squares / squares.sum(axis=1, keepdims=True)


def _weights(shares: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return (candidates, queries, streams) float32: shares that sum to 1 over the streams that a query has."""
    weights = shares[:, None, :] * present
    total = weights.sum(axis=2, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0).astype(np.float32)


def vote(similarities: np.ndarray, labels: np.ndarray, classes: int, temperature: float = TEMPERATURE) -> np.ndarray:
    """Return each class's share of the votes, (queries, classes) float64; a row sums to 1, or to 0 without voters.

    Args:
        similarities: (queries, k).
        labels: (queries, k) integers: classes of the voters, -1 = none.
        classes: number of classes.
        temperature: a voter's weight is exp(similarity / temperature).
    """
    there = labels >= 0
    scaled = np.where(there, similarities.astype(np.float64) / temperature, -np.inf)
    largest = np.where(there.any(axis=1), scaled.max(axis=1), 0)
    weights = np.exp(scaled - largest[:, None])
    query, _ = np.nonzero(there)
    votes = np.bincount(query * classes + labels[there], weights[there], len(labels) * classes)
    total = weights.sum(axis=1)
    return votes.reshape(len(labels), classes) / np.where(total > 0, total, 1)[:, None]


def _blocks_of(queries: EmbeddingSource) -> Iterator[tuple[np.ndarray, EmbeddingSource]]:
    """Yield some queries at a time, with their positions."""
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        positions = np.arange(start, min(start + QUERIES_AT_ONCE, len(queries)))
        yield positions, queries.take(positions)


def _insert(kept: np.ndarray, places: np.ndarray, query: np.ndarray, values: np.ndarray, positions: np.ndarray) -> None:
    """Put pairs into the k nearest of their queries, in place.

    Args:
        kept: (queries, k) similarities, descending.
        places: (queries, k) positions of the references.
        query: (pairs,) position of each pair's query, ascending.
        values, positions: (pairs,) its similarity, and the position of its reference.
    """
    some, start, count = np.unique(query, return_index=True, return_counts=True)
    if not len(some):
        return
    line = np.repeat(np.arange(len(some)), count)
    column = np.arange(len(query)) - np.repeat(start, count)
    k, shape = kept.shape[1], (len(some), kept.shape[1] + count.max())
    all_values, all_places = np.full(shape, EMPTY, np.float32), np.full(shape, -1, np.int64)
    all_values[:, :k], all_places[:, :k] = kept[some], places[some]
    all_values[line, k + column], all_places[line, k + column] = values, positions
    order = np.lexsort((all_places, -all_values), axis=1)[:, :k]
    kept[some] = np.take_along_axis(all_values, order, axis=1)
    places[some] = np.take_along_axis(all_places, order, axis=1)
