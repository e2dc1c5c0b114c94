"""Scores of ridge heads on rows of a store: accuracy, and the losses per source video that intervals need.

The rows are read once for each block of candidates, never once per candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.system.devices import threads_for

from .moments import Moments, blocks
from .profile import Standardised
from .ridge import Folds, Weighting

MOST_UNITS = 20_000  # source videos are merged beyond: bounds memory, and a variance needs no more
HEAD_BYTES = 3 * 2**28  # matrices of the candidates that are scored in one pass over the rows


@dataclass(frozen=True)
class LinearHead:
    """A head for the shifted vectors of all streams: scores = x matrix + bias; matrix (D, C), bias (C,) float64."""

    matrix: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Clips:
    """Clips to score, with what their scores are compared with.

    Attributes:
        rows: embeddings; every clip has all streams.
        targets: (clips,) int, the class of each.
        folds: (clips,) int: the head of a candidate that scores the clip, the one trained without it.
        units: (clips,) int: what is resampled, see `units_of`.
    """

    rows: EmbeddingSource
    targets: np.ndarray
    folds: np.ndarray
    units: np.ndarray

    def drawn(self, most: int, *, seed: int = 0) -> Clips:
        """Return at most so many of the clips, see `drawn`; all of them as they are."""
        if len(self.targets) <= most:
            return self
        own = drawn(len(self.targets), most, seed=seed)
        return Clips(self.rows.take(own), self.targets[own], self.folds[own], self.units[own])


def drawn(clips: int, most: int, *, seed: int = 0) -> np.ndarray:
    """Return the positions of at most `most` of so many clips, drawn without replacement, ascending."""
    if clips <= most:
        return np.arange(clips)
    return np.sort(np.random.default_rng(seed).choice(clips, most, replace=False))


@dataclass(frozen=True)
class RowScores:
    """Sums over the clips of each unit; all but `sizes` are (candidates, units) float64.

    Attributes:
        sizes: (units,) clips.
        squared: squared errors, summed over classes.
        correct: clips whose highest score is their class's.
        log_loss: losses in nats at the candidates' temperatures; zeros without temperatures.
    """

    sizes: np.ndarray
    squared: np.ndarray
    correct: np.ndarray
    log_loss: np.ndarray


def heads_of(folds: Folds, weighting: Weighting, standard: Standardised) -> list[LinearHead]:
    """Return a weighting's heads for the original vectors, one trained without each fold."""
    return [_original(matrix, bias, standard) for matrix, bias in folds.heads(weighting)]


def refit_of(folds: Folds, weighting: Weighting, standard: Standardised) -> LinearHead:
    """Return a weighting's head for the original vectors, trained on all folds."""
    return _original(*folds.refit(weighting), standard)


def _original(matrix: torch.Tensor, bias: torch.Tensor, standard: Standardised) -> LinearHead:
    return LinearHead(standard.matrix @ matrix.cpu().numpy(), bias.cpu().numpy())


Candidate = Callable[[], Sequence[LinearHead]]  # returns a head per fold; solved when it is needed


def score_rows(
    clips: Clips,
    candidates: Sequence[Candidate],
    moments: Moments,
    *,
    temperatures: Sequence[float] | None = None,
    advance: Callable[[int], None] = lambda clips: None,
) -> RowScores:
    """Score candidates on all clips.

    Args:
        clips: the clips.
        candidates: the candidates.
        moments: the original statistics: streams and shift.
        temperatures: one per candidate: scores divided by it are the logits of its probabilities.
        advance: called with the number of clips times candidates of each block.
    """
    count = int(clips.units.max()) + 1
    shape = (len(candidates), count)
    squared, correct, log_loss = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for i, positions, scores in scored_blocks(clips, candidates, moments, advance=advance):
        truth = torch.from_numpy(clips.targets[positions])
        units = clips.units[positions]
        of_truth = scores.gather(1, truth[:, None])[:, 0]
        error = scores.square().sum(dim=1) - 2 * of_truth + 1
        squared[i] += np.bincount(units, error.double().numpy(), count)
        correct[i] += np.bincount(units, (scores.argmax(dim=1) == truth).double().numpy(), count)
        if temperatures is not None:
            logits = scores.double() / temperatures[i]
            loss = torch.logsumexp(logits, dim=1) - of_truth.double() / temperatures[i]
            log_loss[i] += np.bincount(units, loss.numpy(), count)
    return RowScores(np.bincount(clips.units, minlength=count).astype(np.float64), squared, correct, log_loss)


def scores_of(clips: Clips, candidates: Sequence[Candidate], moments: Moments) -> np.ndarray:
    """Return the candidates' scores, (candidates, clips, C) float32, in the order of the clips."""
    scores = np.empty((len(candidates), len(clips.targets), moments.counts.shape[1]), np.float32)
    for i, positions, of_block in scored_blocks(clips, candidates, moments):
        scores[i, positions] = of_block.numpy()
    return scores


def scored_blocks(
    clips: Clips,
    candidates: Sequence[Candidate],
    moments: Moments,
    *,
    advance: Callable[[int], None] = lambda clips: None,
) -> Iterator[tuple[int, np.ndarray, torch.Tensor]]:
    """Yield candidate, positions of clips, and their scores (clips, C) float32."""
    classes = moments.counts.shape[1]
    folds = int(clips.folds.max()) + 1
    at_once = max(1, HEAD_BYTES // (folds * len(moments.shift) * classes * 4))
    for start in range(0, len(candidates), at_once):
        chosen = range(start, min(start + at_once, len(candidates)))
        heads = [
            [(torch.from_numpy(head.matrix).float(), torch.from_numpy(head.bias).float()) for head in candidates[i]()]
            for i in chosen
        ]
        for positions, x in blocks(clips.rows, moments.dims):
            shifted = torch.from_numpy((x - moments.shift).astype(np.float32))
            for fold in np.unique(clips.folds[positions]):
                own = np.flatnonzero(clips.folds[positions] == fold)
                vectors = shifted[own]
                for i, head in zip(chosen, heads, strict=True):
                    matrix, bias = head[fold]
                    with threads_for(vectors.numel() * classes):
                        scores = torch.addmm(bias, vectors, matrix)
                    yield i, positions[own], scores
            advance(len(positions) * len(chosen))


def units_of(groups: Sequence[str], *, seed: int = 0) -> np.ndarray:
    """Return the unit of resampling of each clip, (clips,) int: its source video.

    Beyond 20,000 source videos, whole ones are merged at random: that many units give as good a variance.
    """
    _, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    count = int(index.max()) + 1
    if count <= MOST_UNITS:
        return index
    return (np.random.default_rng(seed).permutation(count) % MOST_UNITS)[index]
