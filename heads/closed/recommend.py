"""What to do about each stream, from the training clips alone: drop it, weigh it like the others, or differently.

`Laboratory`: statistics of the training clips -> `recommend`: profile over weightings, confidence set, cost of
leaving out each stream -> `Recommendation`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.errors import ExperimentError
from alphafuse.heads.scoring.choice import (
    Choice,
    choose_by_sums,
    far_above,
    hardly_above,
    most_lost,
    of_all,
    paired_margin,
)
from alphafuse.system.progress import NO_PROGRESS, Progress

from .mixture import LateWeights, fit_temperature, late_weights, log_probabilities
from .moments import Moments, assign_folds
from .profile import OCTAVES, STEP, Standardised, constant_streams, ratio_profile, search, standardised
from .ridge import Folds, Weighting
from .rows import Clips, LinearHead, heads_of, refit_of, score_rows, scores_of, units_of

DROP_SHARE = 0.01  # a stream goes if the accuracy without it is lower by at most this, with 95% confidence
COARSE = 0.5  # octaves between the weights of the second profile, of z-scored dimensions
NOTHING = 100.0  # log2 of a penalty at which nothing is learned: the head guesses by class frequency
MANY = 10_000  # clips: scoring fewer takes less time than finding out which weightings need no scores
SAMPLE = 20_000  # clips for a temperature and for late weights: a few numbers need no more


@dataclass(frozen=True)
class Profile:
    """Weightings of some streams, their out-of-fold squared errors, and the best of them.

    Attributes:
        streams: the streams that are weighed, in order.
        weightings: weights of each candidate with its best penalty; `loss` is measured on the clips.
        choice: the confidence set and the recommended candidate.
        is_learned: whether the best candidate's error is below that of guessing by class frequency (one-sided 95%);
            if not, the clips can't say anything about weights.
    """

    streams: tuple[str, ...]
    weightings: tuple[Weighting, ...]
    choice: Choice
    is_learned: bool

    @property
    def chosen(self) -> Weighting:
        """The recommended candidate."""
        return self.weightings[self.choice.chosen]

    def range_of(self, stream: str) -> tuple[float, float]:
        """Return the lowest and the highest weight of a stream in the confidence set.

        Of two streams, weights are relative to the other one; of more, to the geometric mean of all.
        """
        inside = [self.weightings[i] for i in np.flatnonzero(self.choice.inside)]
        found = [self.relative(weighting)[stream] for weighting in inside]
        return min(found), max(found)

    def limits_of(self, stream: str) -> tuple[float | None, float | None]:
        """Return `range_of` a stream, with None in place of an end at which the clips set no limit.

        They set one if they exclude a weighting beyond it that differs from one of the set in this stream alone.
        """
        exponents = np.log2([weighting.alphas for weighting in self.weightings])  # (candidates, streams)
        others = np.delete(exponents, self.streams.index(stream), axis=1)
        others = (others - others.mean(axis=1, keepdims=True)).round(3) + 0.0
        line = np.unique(others, axis=0, return_inverse=True)[1].ravel()  # candidates that differ in this stream alone
        inside = self.choice.inside
        weights = np.array([self.relative(weighting)[stream] for weighting in self.weightings])
        excluded = weights[~inside & np.isin(line, line[inside])]
        low, high = self.range_of(stream)
        return low if (excluded < 0.999 * low).any() else None, high if (excluded > 1.001 * high).any() else None

    def limits_in_words(self, stream: str, between: str = " to ") -> str:
        """Return "0.46 to 1.2", "at most 1.2", "at least 0.46" or "no limit found"."""
        return limits_in_words(*self.limits_of(stream), between)

    def relative(self, weighting: Weighting) -> dict[str, float]:
        """Return stream -> weight; of two streams relative to the other one, of more to the geometric mean of all."""
        mean = np.exp(np.mean(np.log(weighting.alphas)))
        power = 2 if len(self.streams) == 2 else 1  # a_2 / a_1 = a_2^2 if a_1 a_2 = 1
        return {
            stream: float(alpha / mean) ** power for stream, alpha in zip(self.streams, weighting.alphas, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """The profile, json-able."""
        return {
            "streams": list(self.streams),
            "weights": self.relative(self.chosen),
            "ranges": {stream: list(self.limits_of(stream)) for stream in self.streams},
            "is_learned": self.is_learned,
            "is_equal_excluded": self.choice.is_equal_excluded,
            "regret_of_equal": self.choice.regret,
            "regret_bound": self.choice.regret_bound,
            "candidates": [
                {"weights": list(one.alphas), "penalty": one.penalty, "loss": one.loss, "inside": bool(inside)}
                for one, inside in zip(self.weightings, self.choice.inside, strict=True)
            ],
        }


def ratio_in_words(weight: float) -> str:
    """Return a weight with two digits."""
    return f"{weight:.2g}" if weight < 10 else f"{weight:.0f}"


def limits_in_words(low: float | None, high: float | None, between: str = " to ") -> str:
    """Return the limits of a weight in words, see `Profile.limits_in_words`; None: no limit was found."""
    if low is not None and high is not None:
        return f"{ratio_in_words(low)}{between}{ratio_in_words(high)}"
    if low is not None:
        return f"at least {ratio_in_words(low)}"
    return "no limit found" if high is None else f"at most {ratio_in_words(high)}"


@dataclass(frozen=True)
class Without:
    """What leaving out a stream costs, out of fold.

    Attributes:
        lost: accuracy lost, as a share; negative if it is higher without the stream.
        bound: one-sided 95% upper bound of `lost`.
    """

    lost: float
    bound: float

    @property
    def can_go(self) -> bool:
        """Whether at most a point of accuracy is lost, with 95% confidence."""
        return self.bound <= DROP_SHARE


@dataclass(frozen=True)
class Recommendation:
    """What to do about each stream.

    Attributes:
        profile: of all streams; None for one.
        without: stream -> the cost of leaving out this one, from all.
        removed: streams to drop, in that order.
        costs: stream that is dropped -> the cost of leaving out it and those before it, from all.
        final: profile of the streams that stay, the same as `profile` if none is dropped; None if one stays.
        chosen: the recommended weights of all streams, 0 for those to drop, with the penalty.
    """

    profile: Profile | None
    without: Mapping[str, Without]
    removed: tuple[str, ...]
    costs: Mapping[str, Without]
    final: Profile | None
    chosen: Weighting


class Laboratory:
    """Statistics of training clips, and the questions that are asked of them.

    Args:
        rows: training clips that have all of the streams.
        targets: (clips,) int in [0, classes).
        classes: number of classes.
        streams: the streams to weigh; all by default.
        folds: folds of source videos; fewer if there are fewer source videos.
        seed: decides the folds, random weightings and draws.
        device: device of the matrices.
        progress: rounds of clips and of weightings.

    Raises:
        ExperimentError: fewer than two source videos, or no stream that varies.

    >>> import numpy as np
    >>> from alphafuse import Dataset
    >>> from alphafuse.heads.closed.recommend import Laboratory
    >>> rows = Dataset.open("demo").embeddings("train")
    >>> found = Laboratory(rows, np.unique(rows.labels, return_inverse=True)[1], 16).recommend()
    >>> sorted(found.without), len(found.profile.weightings)
    (['ast', 'timesformer'], 65)
    """

    def __init__(
        self,
        rows: EmbeddingSource,
        targets: np.ndarray,
        classes: int,
        streams: Sequence[str] = (),
        *,
        folds: int = 5,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: Progress = NO_PROGRESS,
    ) -> None:
        self.seed, self.device, self.progress = seed, device, progress
        names = tuple(streams or rows.dims)
        self.folds = min(folds, len(set(rows.groups)))
        if self.folds < 2:
            raise ExperimentError(
                "weighing needs training clips of at least two source videos: import more clips, or split them again "
                "with `alphafuse data resplit`"
            )
        of_clip = assign_folds(rows.groups, targets, self.folds, seed=seed)
        self.clips = Clips(rows, targets, of_clip, units_of(rows.groups, seed=seed))
        progress.start("statistics", total=len(rows))
        try:
            moments = Moments.of(rows, targets, of_clip, classes=classes, streams=names, advance=progress.advance)
        finally:
            progress.stop()
        self.constant = tuple(constant_streams(moments))
        if len(self.constant) == len(names):
            raise ExperimentError(
                f"the embeddings of {', '.join(names)} are the same for all training clips, so there is nothing to "
                "weigh: look at them with `alphafuse store info`"
            )
        self.moments = moments.only([name for name in names if name not in self.constant])
        self.streams = tuple(self.moments.dims)
        self.standard = standardised(self.moments)
        self.problem = Folds(self.standard.moments, device=device)

    def recommend(self) -> Recommendation:
        """Drop what can go, one stream at a time, each at its cost against all streams; weigh the rest."""
        remaining = self.streams
        removed: dict[str, Without] = {}
        first: Profile | None = None
        without: Mapping[str, Without] = {}
        final: Profile | None = None
        whole: np.ndarray | None = None
        sizes = np.bincount(self.clips.units).astype(np.float64)
        while len(remaining) > 1:
            final, correct, alone = self.profile_of(remaining)
            whole = correct if whole is None else whole
            costs = {stream: Without(*most_lost(whole, alone[stream], sizes)) for stream in remaining}
            first, without = first or final, without or costs
            if not first.is_learned:
                break
            can_go = [stream for stream in remaining if costs[stream].can_go]
            if not can_go:
                break
            gone = min(can_go, key=lambda stream: costs[stream].bound)
            removed[gone] = costs[gone]
            remaining = tuple(stream for stream in remaining if stream != gone)
        if len(remaining) == 1 or final is None:
            return Recommendation(first, without, tuple(removed), removed, None, self.single(remaining[0]))
        own = dict(zip(final.streams, final.chosen.alphas, strict=True))
        chosen = replace(final.chosen, alphas=tuple(own.get(stream, 0.0) for stream in self.streams))
        return Recommendation(first, without, tuple(removed), removed, final, chosen)

    def single(self, stream: str) -> Weighting:
        """Return the weighting that reads this stream alone, with its best penalty."""
        return self.problem.best([float(stream == other) for other in self.streams])

    def equal(self) -> Weighting:
        """Return equal weights, with their best penalty."""
        return self.problem.best([1.0] * len(self.streams))

    def zscored(self) -> Profile:
        """Return the profile if every dimension is scaled to variance 1 first; of two streams in half octaves."""
        return self.profile_of(self.streams, standardised(self.moments, each_dimension=True), step=COARSE)[0]

    def profile_of(
        self, streams: Sequence[str], standard: Standardised | None = None, *, step: float = STEP
    ) -> tuple[Profile, np.ndarray, dict[str, np.ndarray]]:
        """Weigh two or more of the streams.

        Returns:
            The profile; the correct clips of its best candidate, (units,); and the same without each stream.
        """
        standard = (standard or self.standard).only(streams)
        problem = Folds(standard.moments, device=self.device)
        points = round(2 * OCTAVES / step) + 1 if len(streams) == 2 else 0
        self.progress.start("weightings", total=points, unit="weighting")
        try:
            if len(streams) == 2:
                found = ratio_profile(problem, step=step, advance=self.progress.advance)
                equal = len(found) // 2
            else:
                found, equal = search(problem, seed=self.seed, advance=self.progress.advance), 0
        finally:
            self.progress.stop()
        near = found[equal].penalty
        one_less = [problem.best([float(other != stream) for other in streams], near=near) for stream in streams]
        guess = Weighting(len(streams) * (1.0,), problem.unit * 2.0**NOTHING, 0.0)
        inflation = 1 + self.folds / (self.folds - 1)
        kept = worth_scoring(problem, found, self.clips.rows.groups, inflation=inflation)
        candidates = [*(found[i] for i in kept), *one_less, guess]
        self.progress.start("scores", total=len(candidates) * len(self.clips.targets))
        try:
            scored = score_rows(
                self.clips,
                [partial(heads_of, problem, one, standard) for one in candidates],
                self.moments,
                advance=self.progress.advance,
            )
        finally:
            self.progress.stop()
        squared, at = scored.squared[: len(kept)], int(np.flatnonzero(kept == equal)[0])
        some = choose_by_sums(squared, scored.sizes, at, inflation=inflation, seed=self.seed)
        choice = of_all(some, kept, np.array([one.loss for one in found]))
        if len(streams) == 2:
            choice = _without_gaps(choice, equal)
        measured = tuple(replace(one, loss=float(loss)) for one, loss in zip(found, choice.losses, strict=True))
        without = dict(zip(streams, scored.correct[len(kept) : -1], strict=True))
        gain, margin = paired_margin(scored.squared[-1] - squared[some.best], scored.sizes)
        return Profile(tuple(streams), measured, choice, gain > margin), scored.correct[some.best], without

    def refit(self, weighting: Weighting) -> tuple[LinearHead, float]:
        """Return the head of these weights trained on all clips, and the temperature of its scores."""
        return refit_of(self.problem, weighting, self.standard), self._out_of_fold(weighting)[1]

    def late(self) -> LateWeights:
        """Return the weights of late fusion of one head per stream."""
        of_label = []
        for stream in self.streams:
            scores, temperature = self._out_of_fold(self.single(stream))
            of_label.append(np.exp(log_probabilities(scores, self._sample.targets, temperature)))
        return late_weights(np.stack(of_label), [*self._sample.rows.groups], seed=self.seed)

    def _out_of_fold(self, weighting: Weighting) -> tuple[np.ndarray, float]:
        """Return out-of-fold scores (clips, C) of the sampled clips, and their temperature."""
        heads = partial(heads_of, self.problem, weighting, self.standard)
        scores = scores_of(self._sample, [heads], self.moments)[0]
        return scores, fit_temperature(scores, self._sample.targets)

    @cached_property
    def _sample(self) -> Clips:
        return self.clips.drawn(SAMPLE, seed=self.seed)


def worth_scoring(
    problem: Folds, weightings: Sequence[Weighting], groups: Sequence[str], *, inflation: float = 1.0
) -> np.ndarray:
    """Return the positions of the weightings whose errors on single clips the confidence set needs.

    Of many clips, those are the weightings whose mean errors alone leave open whether they are in the set (they are if
    they are hardly above the least error, and aren't if `far_above` it), the best one, and every fourth of all: the
    set depends on the others through a maximum over weightings, in which neighbours hardly differ.
    """
    everything = np.arange(len(weightings))
    if len(groups) < MANY:
        return everything
    losses = np.array([one.loss for one in weightings])
    best = int(losses.argmin())
    far = far_above(losses, problem.distances(weightings, weightings[best]), groups, inflation=inflation)
    return everything[~(far | hardly_above(losses)) | (everything % 4 == 0) | (everything == best)]


def _without_gaps(choice: Choice, equal: int) -> Choice:
    """Return the choice with all ratios between the lowest and the highest of the set inside: an interval."""
    ends = np.flatnonzero(choice.inside)
    inside = choice.inside.copy()
    inside[ends[0] : ends[-1] + 1] = True
    return replace(choice, inside=inside, chosen=equal if inside[equal] else choice.best)
