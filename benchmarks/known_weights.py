"""Data whose best weights are known, for simulate_weigh.py: their distribution, and what `weigh` says of draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize

from alphafuse.data.embeddings import Embeddings
from alphafuse.heads.closed.moments import Moments
from alphafuse.heads.closed.profile import OCTAVES, STEP, Standardised, of_ratio, standardised
from alphafuse.heads.closed.recommend import Laboratory, Profile
from alphafuse.heads.closed.ridge import Folds, Weighting, best_penalty
from alphafuse.heads.closed.rows import LinearHead, refit_of

SAMPLED = 0.5  # octaves between the ratios at which the expected risk of two streams is computed; a spline joins them


@dataclass(frozen=True)
class Case:
    """What is simulated: a stream per entry of `dims` and `signal`."""

    dims: tuple[int, ...]
    signal: tuple[float, ...]
    clips: int
    classes: int
    decay: float = 1.0
    per_video: int = 1


class Truth:
    """A case's distribution: centres, covariances, and the exact risk of any head."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        rng = np.random.default_rng(seed)
        self.roots, centres = [], []
        for dim, signal in zip(case.dims, case.signal, strict=True):
            variances = np.arange(1, dim + 1) ** -case.decay
            axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
            root = axes * np.sqrt(variances * dim / variances.sum())
            self.roots.append(root)
            centres.append(signal * rng.standard_normal((case.classes, dim)) @ root.T)
        self.centres = np.concatenate(centres, axis=1)  # (C, D)
        self.mean = self.centres.mean(axis=0)
        about = self.centres - self.mean
        within = torch.block_diag(*(torch.from_numpy(root @ root.T) for root in self.roots)).numpy()
        self.gram = within + about.T @ about / case.classes
        self.cross = about.T / case.classes

    def draw(self, rng: np.random.Generator) -> tuple[Embeddings, np.ndarray]:
        """Return clips and their classes; clips of one source video share half of their noise's variance."""
        case = self.case
        videos = -(-case.clips // case.per_video)
        group = np.repeat(np.arange(videos), case.per_video)[: case.clips]
        targets = rng.integers(case.classes, size=videos)[group]
        share = 0.5 if case.per_video > 1 else 0.0
        noise = [
            np.sqrt(1 - share) * rng.standard_normal((case.clips, dim))
            + np.sqrt(share) * rng.standard_normal((videos, dim))[group]
            for dim in case.dims
        ]
        x = self.centres[targets] + np.concatenate([z @ r.T for z, r in zip(noise, self.roots, strict=True)], axis=1)
        ends = np.cumsum(case.dims)[:-1]
        names = [f"s{i}" for i in range(len(case.dims))]
        features = dict(zip(names, np.split(x.astype(np.float32), ends, axis=1), strict=True))
        ids = tuple(f"c{i}" for i in range(case.clips))
        return Embeddings(ids, tuple(map(str, targets)), tuple(map(str, group)), features, (), {}), targets

    def risk(self, head: LinearHead, shift: np.ndarray) -> float:
        """Return the expected squared error of a head for shifted vectors on a new clip."""
        gap = 1 / self.case.classes - head.bias - (self.mean - shift) @ head.matrix
        spread = (head.matrix * (self.gram @ head.matrix - 2 * self.cross)).sum()
        return float(1 - 1 / self.case.classes + spread + gap @ gap)


@dataclass(frozen=True)
class TrueWeights:
    """The weights of least expected risk, and what others cost, as shares of the least risk."""

    alphas: tuple[float, ...]
    risk: float
    cost_of_equal: float
    cost_without: tuple[float, ...]


def true_weights(truth: Truth, sets: int, seed: int) -> TrueWeights:
    """Find the weights of least expected risk over this many training sets, the penalty best at each weighting."""
    case, rng = truth.case, np.random.default_rng(seed)
    count = len(case.dims)
    problems: list[tuple[Folds, Standardised, np.ndarray]] = []
    for _ in range(sets):
        rows, targets = truth.draw(rng)
        moments = Moments.of(rows, targets, np.arange(len(targets)) % 2, classes=case.classes)
        standard = standardised(moments)
        problems.append((Folds(standard.moments), standard, moments.shift))

    def expected(alphas: Sequence[float], near: float | None) -> tuple[float, float]:
        def mean_risk(penalty: float) -> float:
            weighting = Weighting(tuple(alphas), penalty, 0.0)
            return float(np.mean([truth.risk(refit_of(f, weighting, s), shift) for f, s, shift in problems]))

        return best_penalty(mean_risk, problems[0][0].unit, near)

    penalty, of_equal = expected([1.0] * count, None)
    without = [expected([float(i != gone) for i in range(count)], penalty)[1] for gone in range(count)]
    if count == 2:
        coarse = np.arange(-OCTAVES, OCTAVES + SAMPLED, SAMPLED)
        spline = CubicSpline(coarse, [expected(of_ratio(exponent), penalty)[1] for exponent in coarse])
        fine = np.arange(-OCTAVES, OCTAVES + STEP, STEP)
        best = int(spline(fine).argmin())
        alphas, least = of_ratio(float(fine[best])), float(spline(fine[best]))
    else:

        def of_exponents(free: np.ndarray) -> float:
            exponents = np.append(free, -free.sum())
            return expected(2.0 ** np.clip(exponents, -8, 8), penalty)[1]

        found = minimize(
            of_exponents, np.zeros(count - 1), method="Nelder-Mead", options={"xatol": 0.05, "fatol": 1e-7}
        )
        alphas = tuple((2.0 ** np.append(found.x, -found.x.sum())).tolist())
        least = float(found.fun)
    return TrueWeights(alphas, least, of_equal / least - 1, tuple(one / least - 1 for one in without))


@dataclass(frozen=True)
class Drawn:
    """What `weigh` says of one data set."""

    covers: bool
    excludes_equal: bool
    octaves: float
    excess: float
    dropped: tuple[bool, ...]


def once(truth: Truth, true: TrueWeights, seed: int) -> Drawn:
    """Draw a data set and weigh its streams."""
    torch.set_num_threads(1)
    rows, targets = truth.draw(np.random.default_rng(seed))
    laboratory = Laboratory(rows, targets, truth.case.classes, seed=seed)
    found = laboratory.recommend()
    assert found.profile is not None
    shift = laboratory.moments.shift

    def risk(weighting: Weighting) -> float:
        return truth.risk(laboratory.refit(weighting)[0], shift)

    low_high = {stream: found.profile.range_of(stream) for stream in found.profile.streams}
    return Drawn(
        covers=covers(found.profile, true.alphas),
        excludes_equal=found.profile.choice.is_equal_excluded,
        octaves=float(np.log2(np.divide(*low_high[found.profile.streams[-1]][::-1]))),
        excess=risk(found.chosen) / risk(laboratory.problem.best(true.alphas)) - 1,
        dropped=tuple(stream in found.removed for stream in laboratory.streams),
    )


def covers(profile: Profile, alphas: Sequence[float]) -> bool:
    """Whether each stream's interval holds its true weight."""
    true = profile.relative(Weighting(tuple(alphas), 0.0, 0.0))
    for stream, weight in true.items():
        low, high = profile.range_of(stream)
        if not low * 0.999 <= weight <= high * 1.001:
            return False
    return True
