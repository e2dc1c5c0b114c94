"""What each stream contributes: values of a game whose players are streams, and how a trained head uses them.

A game says what every subset S of the players is worth, v(S). Here v(S) is a score of a head that has the streams in S:
information gain in bits per clip first, then accuracy. All indices are linear in v, so they are computed per clip, and
their means get an interval over source videos. Such an interval holds the heads fixed: it says how the figure
varies with the clips that are scored, not with those that are learned from.

    v(S)        information_gain, or correct or not; worths, gain_worth: their means with intervals
    players     shapley_values, shapley_taylor_pairs, of_groups        what the embeddings offer
    a head      permuted_across, additive_logits                       what this head uses
    an answer   margin_shares                                          shares of one answer

Arrays in, figures out: nothing here knows embeddings, heads or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import false_discovery_control

from .statistics import (
    Interval,
    difference_interval,
    mean_intervals,
    paired_permutation_test,
)

ALL_PAIRS = 2000  # clips up to which every pair is averaged: 4 million answers per stream
SAMPLED_PAIRS = 1_000_000  # beyond: an error of a tenth of a point in a quarter of the time
PARTS = 5  # parts of the partners that are left out in turn, for the error of sampling them
Subset = frozenset[str]
Game = Mapping[Subset, np.ndarray]  # every subset of the players -> its value: a number, or one per clip


# games


def subsets_of(players: Iterable[str]) -> list[Subset]:
    """Return all subsets, the empty one first, the smaller ones before the larger.

    >>> [sorted(subset) for subset in subsets_of("ab")]
    [[], ['a'], ['b'], ['a', 'b']]
    """
    names = list(players)
    return [Subset(some) for some in chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))]


def shapley_values(game: Game, players: Sequence[str]) -> dict[str, np.ndarray]:
    """Return player -> the mean, over all orders of joining, of what it adds when it joins (Shapley 1953).

    They sum to v(all) - v(none). Of two players the first has (v(1) - v(0)) / 2 + (v(12) - v(2)) / 2.

    >>> game = dict(zip(subsets_of("ab"), np.array([0.0, 1.0, 2.0, 4.0])))
    >>> {player: float(value) for player, value in shapley_values(game, "ab").items()}
    {'a': 1.5, 'b': 2.5}
    """
    count = len(players)
    found = {}
    for player in players:
        others = [other for other in players if other != player]
        terms = [
            (game[some | {player}] - game[some]) / (count * math.comb(count - 1, len(some)))
            for some in subsets_of(others)
        ]
        found[player] = np.sum(terms, axis=0)
    return found


def shapley_taylor_pairs(game: Game, players: Sequence[str]) -> dict[tuple[str, str], np.ndarray]:
    """Return pair -> its cooperation, the Shapley-Taylor index of order 2 (Sundararajan, Dhamdhere and Agarwal 2020).

    It is the mean, over all orders of joining, of what the two add together beyond what each adds alone. Of two
    players that is v(12) - v(1) - v(2) + v(0): below 0 they offer the same, above 0 each makes the other worth more.
    """
    count = len(players)
    found = {}
    for one, other in combinations(players, 2):
        rest = [player for player in players if player not in (one, other)]
        terms = [
            2
            / (count * math.comb(count - 1, len(some)))
            * (game[some | {one, other}] - game[some | {one}] - game[some | {other}] + game[some])
            for some in subsets_of(rest)
        ]
        found[one, other] = np.sum(terms, axis=0)
    return found


def of_groups(game: Game, members: Mapping[str, Iterable[str]]) -> dict[Subset, np.ndarray]:
    """Return the game whose players are groups of the players, such as all streams of a medium: name -> members."""
    joined = {name: Subset(some) for name, some in members.items()}
    return {some: game[Subset().union(*(joined[name] for name in some))] for some in subsets_of(joined)}


# values


def information_gain(log_probability: np.ndarray, log_prior: np.ndarray) -> np.ndarray:
    """Return the bits that an answer gives about each clip's label: log2 of its probability over that of the prior.

    Its mean is what a subset of streams is worth: 0 if the answer is the prior, log2 C at most for C equally frequent
    classes. It is additive: two independent halves of a label give the sum of their bits.

    Args:
        log_probability: (..., clips) natural logarithm of the probability of each clip's label.
        log_prior: (clips,) the same of its class's share of the training clips.
    """
    return (log_probability - log_prior) / math.log(2)


def prior_hits(shares: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return (clips,) the chance of being right with no stream: by naming the most frequent class, or one of several.

    Args:
        shares: (C,) each class's share of the training clips; targets: (clips,) int.
    """
    largest = shares >= shares.max() * (1 - 1e-12)
    return np.where(largest[targets], 1 / largest.sum(), 0.0)


def calibrated(evidence: np.ndarray, log_prior: np.ndarray, sharpness: float) -> np.ndarray:
    """Return log probabilities, (clips, C), proportional to prior x exp(sharpness x evidence).

    Args:
        evidence: (clips, C) scores minus their values for a clip that says nothing.
        log_prior: (C,) of the classes; -inf for a class without training clips.
        sharpness: the inverse of a temperature; 0 gives the prior.
    """
    logits = log_prior + sharpness * evidence
    return logits - logsumexp(logits, axis=1, keepdims=True)


def best_sharpness(evidence: np.ndarray, log_prior: np.ndarray, targets: np.ndarray) -> float:
    """Return the sharpness, at least 0, of the highest mean log probability of the labels (a convex problem).

    Args:
        evidence, log_prior: as in `calibrated`; targets: (clips,) int.
    """
    unit = float(np.abs(evidence).mean())
    if unit <= 0 or not np.isfinite(unit):
        return 0.0
    own = np.arange(len(targets))

    def loss(sharpness: float) -> float:
        return -float(calibrated(evidence, log_prior, sharpness)[own, targets].mean())

    found = minimize_scalar(
        lambda exponent: loss(2.0**exponent / unit), bounds=(-12.0, 12.0), method="bounded", options={"xatol": 1e-3}
    )
    return 0.0 if found.fun >= loss(0.0) else 2.0 ** float(found.x) / unit


# figures


@dataclass(frozen=True)
class Figure:
    """A mean over clips and its 95% interval, which holds the heads fixed."""

    mean: float
    interval: Interval


@dataclass(frozen=True)
class Worth:
    """A figure in both units.

    Attributes:
        bits: information about the label, in bits per clip.
        accuracy: as a share in [-1, 1]; times 100 it is points.
    """

    bits: Figure
    accuracy: Figure

    def to_json(self) -> dict[str, Any]:
        """Return the fields as json-able values."""
        return asdict(self)


def worths(bits: np.ndarray, hits: np.ndarray, groups: Sequence[str]) -> list[Worth]:
    """Return the means of several figures over the same clips, with intervals; bits and hits: (figures, clips)."""
    figures = []
    for values in (bits, hits):
        intervals = mean_intervals(values, groups)
        figures.append([Figure(float(one.mean()), found) for one, found in zip(values, intervals, strict=True)])
    return [Worth(*both) for both in zip(*figures, strict=True)]


def gain_worth(bits: np.ndarray, hits: np.ndarray, other_hits: np.ndarray, groups: Sequence[str]) -> Worth:
    """Return what one head is worth more than another.

    Args:
        bits: (clips,) bits of the one minus those of the other.
        hits, other_hits: (clips,) right or not of the one, and of the other.
        groups: (clips,) source videos.
    """
    return Worth(
        Figure(float(bits.mean()), mean_intervals(bits[None], groups)[0]),
        Figure(float((hits - other_hits).mean()), difference_interval(hits, other_hits, groups)),
    )


def discoveries(values: Sequence[np.ndarray], groups: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Test many means against 0; return their p-values, and the same corrected for the false discovery rate.

    Sign flips over source videos; Benjamini and Hochberg (1995): of the figures with a corrected p of at most .05, a
    twentieth is expected to be false.

    Args:
        values, groups: per figure, (clips,) values and source videos.
    """
    p_values = np.array(
        [
            paired_permutation_test(own, np.zeros_like(own), of_own).p_value
            for own, of_own in zip(values, groups, strict=True)
        ]
    )
    return p_values, false_discovery_control(p_values, method="bh") if len(p_values) else p_values


# a head


def permuted_across(groups: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Return a permutation of clips, (clips,) int, in which each clip's partner comes from another source video.

    Source videos are shuffled and the clips rotated by a random step, so that the partners are a permutation. If one
    video holds more than half of the clips, some partners are from the same video.
    """
    _, index, sizes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True, return_counts=True)
    clips, largest = len(index), int(sizes.max())
    order = np.lexsort((rng.random(clips), rng.permutation(len(sizes))[index]))  # clips of a video side by side
    step = int(rng.integers(largest, clips - largest + 1)) if 2 * largest <= clips else clips // 2
    partners = np.empty(clips, np.int64)
    partners[order] = np.roll(order, step)
    return partners


@dataclass(frozen=True)
class AdditiveLogits:
    """The additive part of a head's logits on clips.

    Attributes:
        logits: (clips, C).
        parts: (parts, clips, C) the same without a fifth of the partners each, for `sampling_error`; none if all
            pairs were averaged.
        partners: number of partners of each clip.
    """

    logits: np.ndarray
    parts: np.ndarray
    partners: int


def partners_of(clips: int) -> int:
    """Return the number of partners of each clip in `additive_logits`."""
    return clips if clips <= ALL_PAIRS else max(PARTS, SAMPLED_PAIRS // clips)


def additive_logits(
    means: Callable[[str, np.ndarray], np.ndarray],
    last: Callable[[np.ndarray], np.ndarray],
    streams: Sequence[str],
    clips: int,
    *,
    seed: int = 0,
) -> AdditiveLogits:
    """Return the logits of the additive function closest to a head: EMAP (Hessel and Lee 2020), for N streams.

        sum over streams s of mean_j f(x_s of clip i, the others of clip j)  -  (N - 1) x the mean of all of these

    For two streams it is theirs. Of three and more streams, those of a partner j stay together. Every clip is a
    partner up to 2,000 clips; beyond that so many are drawn that there are a million pairs.

    Args:
        means: (stream, partners) -> what the head's last layer reads, (clips, width), averaged over the partners, with
            the stream of each clip and the others of the partner. Averages of anything earlier would be wrong: only
            what follows is linear.
        last: the last layer: (clips, width) -> logits (clips, C).
        streams: N names.
        clips: number of clips.
        seed: seed of the drawn partners.
    """
    count = len(streams)
    if clips <= ALL_PAIRS:
        chosen, parts = np.arange(clips), 1
    else:
        chosen, parts = np.random.default_rng(seed).choice(clips, partners_of(clips), replace=False), PARTS
    blocks = np.array_split(chosen, parts)
    sums = []  # per block of partners: (streams, clips, width) sums over them
    for block in blocks:
        sums.append(np.stack([means(stream, block).astype(np.float32) * len(block) for stream in streams]))

    def projected(kept: Sequence[int]) -> np.ndarray:
        of_stream = np.sum([sums[i] for i in kept], axis=0) / sum(
            len(blocks[i]) for i in kept
        )  # (streams, clips, width)
        grand = of_stream.mean(axis=(0, 1))
        return last(of_stream.sum(axis=0) - (count - 1) * grand)

    everything = range(parts)
    without = [projected([i for i in everything if i != left_out]) for left_out in everything] if parts > 1 else []
    logits = projected(everything)
    return AdditiveLogits(logits, np.array(without).reshape(len(without), *logits.shape), len(chosen))


def sampling_error(figures: Sequence[float]) -> float:
    """Return the standard error of a figure by the jackknife: `figures` are the same with one part left out each."""
    count = len(figures)
    return float(np.sqrt((count - 1) / count * np.square(np.array(figures) - np.mean(figures)).sum())) if count else 0.0


# an answer


def margin_shares(
    weights: Mapping[str, np.ndarray], centred: Mapping[str, np.ndarray], top: np.ndarray, second: np.ndarray
) -> dict[str, np.ndarray]:
    """Return stream -> its share of the margin of the top class over the second, (clips,), for a head that is linear.

    The share of a stream is (x_s - mean_s) . (W_top - W_second), x_s with its weight alpha_s. It is the exact Shapley
    value of the margin, in the game in which a stream that hasn't joined has its mean embedding.

    Args:
        weights: stream -> (C, dim).
        centred: stream -> (clips, dim), embeddings minus their mean over the training clips.
        top, second: (clips,) int, positions of classes.
    """
    return {
        stream: np.einsum("nd,nd->n", x, weights[stream][top] - weights[stream][second])
        for stream, x in centred.items()
    }
