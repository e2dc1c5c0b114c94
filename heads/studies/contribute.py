"""What each stream contributes: two questions, kept apart.

*What the embeddings offer*: heads are fitted anew for every subset of the streams, in closed form or trained, and a
subset is worth the bits per clip that its head gives about the label, and its accuracy. *What this head uses* is
`use.py`'s question about one trained run: a head may well not use what the embeddings offer.

    SameClips -> `_Closed` or `_Trained`: subset -> `Answers` -> games -> Shapley values, pairs, media, gains, classes

The gain of a stream is what all streams are worth more than all but this one. That gain might come from more columns
and more tuning, so it stands beside those of a *permuted refit*: the stream is permuted across source videos, and
heads are trained, tuned and tested on it the same way. In closed form the streams' weights are tuned too: at equal
weights a stream of noise costs bits, and any stream would look better than its permuted self.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.labelling import labelling_warning
from alphafuse.data.sources.demo import DEMO_NAME
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.data.streams import in_order, names_of
from alphafuse.errors import ExperimentError
from alphafuse.heads.closed.mixture import fit_temperature, log_probabilities
from alphafuse.heads.closed.moments import Moments, assign_folds
from alphafuse.heads.closed.profile import constant_streams, standardised, tuned
from alphafuse.heads.closed.recommend import DROP_SHARE, SAMPLE
from alphafuse.heads.closed.ridge import Folds, Weighting
from alphafuse.heads.closed.rows import Candidate, Clips, LinearHead, heads_of, refit_of, score_rows, scores_of
from alphafuse.heads.model.checks import check_choice, check_count
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.scoring.choice import most_lost
from alphafuse.heads.scoring.contribution import (
    Figure,
    Game,
    Subset,
    Worth,
    best_sharpness,
    discoveries,
    gain_worth,
    information_gain,
    of_groups,
    permuted_across,
    prior_hits,
    shapley_taylor_pairs,
    shapley_values,
    subsets_of,
    worths,
)
from alphafuse.heads.scoring.statistics import (
    accuracy_interval,
    group_sums,
    holm,
    paired_permutation_test,
)
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import class_indices
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.results import Tabular

from .best_run import best_run
from .evaluate import load_run
from .permuted_stream import PermutedStream
from .runs import resolve_run
from .same_clips import SameClips
from .use import Use, use_of_run

HEADS = ("closed", "fit")
FOLDS = 5
REFITS = 20  # permuted refits per stream: a gain above all of them has p = 1 / 21
MOST_STREAMS = 8  # 2^8 heads


# results


@dataclass(frozen=True)
class Shared:
    """How a value is shared among players: streams, or media.

    Attributes:
        shares: player -> its Shapley value; they sum to the value of all players minus that of none.
        pairs: (player, player) -> their cooperation, the Shapley-Taylor index of order 2: below 0 the two offer the
            same, above 0 each makes the other worth more.
    """

    shares: Mapping[str, Worth]
    pairs: Mapping[tuple[str, str], Worth]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as json-able values."""
        return {
            "shapley": {name: worth.to_json() for name, worth in self.shares.items()},
            "pairs": [{"players": list(pair), **worth.to_json()} for pair, worth in self.pairs.items()],
        }


@dataclass(frozen=True)
class Gain:
    """What all streams are worth more than all but one.

    Attributes:
        worth: the gain.
        p_holm: paired permutation test of the bits over source videos, Holm-corrected over the streams.
        permuted_bits, permuted_accuracy: the same gain in each permuted refit.
        most_lost: 95% upper bound of the accuracy lost without the stream.
    """

    worth: Worth
    p_holm: float
    permuted_bits: tuple[float, ...]
    permuted_accuracy: tuple[float, ...]
    most_lost: float

    @property
    def verdict(self) -> str:
        """What the clips say of the stream: "adds", "can go", or "undecided"."""
        beats_null = all(self.worth.bits.mean > permuted for permuted in self.permuted_bits)
        if self.worth.bits.mean > 0 and self.p_holm <= 0.05 and beats_null:
            return "adds"
        return "can go" if self.most_lost <= DROP_SHARE else "undecided"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as json-able values."""
        return {
            **self.worth.to_json(),
            "p_holm": self.p_holm,
            "permuted_bits": list(self.permuted_bits),
            "permuted_accuracy": list(self.permuted_accuracy),
            "most_lost": self.most_lost,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class ClassShare:
    """Shapley value of a stream on the test clips of a class.

    Attributes:
        label, stream: of which.
        n: test clips.
        worth: the value.
        p_value: sign-flip test of the bits over source videos; corrected: for the false discovery rate.
    """

    label: str
    stream: str
    n: int
    worth: Worth
    p_value: float
    corrected: float

    @property
    def is_found(self) -> bool:
        """Whether the value differs from 0; a twentieth of those found is expected to be false."""
        return self.corrected <= 0.05


@dataclass(frozen=True)
class Contribution(Tabular):
    """Result of `contribute`.

    Attributes:
        dataset_name: name of the dataset; is_demo: whether it is the generated demo.
        head: "closed" or "fit".
        media: stream -> "video" or "audio", of the streams that are compared, in order.
        classes: number of classes.
        clips, dropped: split -> number of clips used, and left out because they lack a stream.
        unseen: test clips left out because their class has no training clip.
        source_videos: of the test clips.
        folds, seed: as given.
        values: subset of streams -> what it is worth, from () to all.
        out_of_fold: subset -> (bits, accuracy) of training clips scored by heads that were trained without them; empty
            for trained heads.
        weights: subset -> stream -> weight on the scale of equal variances, geometric mean 1; empty for trained heads.
        streams: how the worth of all streams is shared among them.
        of_media: the same with media as players; None unless several streams share one of two media.
        gains: stream -> its gain, with that of the permuted refits.
        by_class: values per class and stream.
        used: how a trained run uses its streams; None without one.
        not_used: why `used` is None.
        warning: what the way the labels were given can hide, see `labelling_warning`; None if nothing.
        provenance: inputs of the study, for config.json.

    >>> from alphafuse import Dataset, contribute
    >>> found = contribute(Dataset.open("demo"), refits=2)
    >>> sorted(found.streams.shares), found.gains["ast"].verdict
    (['ast', 'timesformer'], 'adds')
    >>> total = sum(worth.bits.mean for worth in found.streams.shares.values())
    >>> abs(total - found.values["timesformer", "ast"].bits.mean) < 1e-9
    True
    """

    dataset_name: str
    is_demo: bool
    head: str
    media: Mapping[str, str]
    classes: int
    clips: Mapping[str, int]
    dropped: Mapping[str, int]
    unseen: int
    source_videos: int
    folds: int
    seed: int
    values: Mapping[tuple[str, ...], Worth]
    out_of_fold: Mapping[tuple[str, ...], tuple[float, float]]
    weights: Mapping[tuple[str, ...], Mapping[str, float]]
    streams: Shared
    of_media: Shared | None
    gains: Mapping[str, Gain]
    by_class: tuple[ClassShare, ...]
    used: Use | None
    not_used: str
    warning: str | None
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        def written(bits: Figure) -> str:
            return f"{bits.mean:+.2f} bits [{bits.interval.low:+.2f}, {bits.interval.high:+.2f}]"

        shares = ", ".join(f"{name} {written(worth.bits)}" for name, worth in self.streams.shares.items())
        return f"Contribution({self.dataset_name!r}, {self.head}, {shares}, n={self.clips['test']})"

    @property
    def refits(self) -> int:
        """Number of permuted refits of each stream."""
        return len(next(iter(self.gains.values())).permuted_bits)

    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        given = {"head": self.head, "streams": list(self.media), "folds": self.folds, "refits": self.refits}
        return {
            "contribute": {**given, "run": str(self.used.run) if self.used else None},
            **self.provenance,
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
        }

    def to_json(self) -> dict[str, Any]:
        """Every figure, json-able. Accuracies are shares; times 100 they are points."""
        return {
            "dataset": self.dataset_name,
            "warning": self.warning,
            "is_demo": self.is_demo,
            "head": self.head,
            "media": dict(self.media),
            "classes": self.classes,
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
            "unseen": self.unseen,
            "source_videos": self.source_videos,
            "folds": self.folds,
            "seed": self.seed,
            "values": [
                {
                    "streams": list(subset),
                    **worth.to_json(),
                    "out_of_fold": dict(zip(("bits", "accuracy"), self.out_of_fold[subset], strict=True))
                    if subset in self.out_of_fold
                    else None,
                    "weights": self.weights.get(subset),
                }
                for subset, worth in self.values.items()
            ],
            **self.streams.to_json(),
            "of_media": self.of_media and self.of_media.to_json(),
            "gains": {stream: gain.to_json() for stream, gain in self.gains.items()},
            "by_class": [
                {
                    "label": share.label,
                    "stream": share.stream,
                    "n": share.n,
                    **share.worth.to_json(),
                    "p": share.p_value,
                    "p_false_discovery": share.corrected,
                }
                for share in self.by_class
            ],
            "used": self.used and self.used.to_json(),
            "not_used": self.not_used,
        }


# the study


@dataclass(frozen=True)
class Answers:
    """Answers of a subset's head.

    Attributes:
        gain: (test clips,) bits.
        hits: (test clips,) right or not; a chance in [0, 1] where several classes are named.
        out_of_fold: mean bits and accuracy of training clips; None for trained heads.
        weights: of all streams, 0 for those that aren't in the subset; () for trained heads.
    """

    gain: np.ndarray
    hits: np.ndarray
    out_of_fold: tuple[float, float] | None = None
    weights: tuple[float, ...] = ()


Scorer = Callable[[Mapping[str, EmbeddingSource], Sequence[Subset], bool], dict[Subset, Answers]]


def contribute(
    dataset: Dataset | str | Path,
    *,
    head: str = "closed",
    streams: str | Sequence[str] = (),
    run: str | Path | None = None,
    folds: int = FOLDS,
    seed: int = 0,
    refits: int = REFITS,
    settings: TrainSettings | None = None,
    progress: Progress = NO_PROGRESS,
) -> Contribution:
    """Measure what each stream contributes, on test clips, each head scored once.

    Writes no files; see `alphafuse.write_contribution`.

    Args:
        dataset: a dataset, or its folder, whose three splits are extracted.
        head: "closed": a ridge in closed form per subset on streams of equal total variance; their weights (see
            `tuned`), the penalty and the temperature of the probabilities are chosen out-of-fold on training clips.
            Such heads add up a term per stream: what only the combination of two streams tells, they can't see.
            "fit": a trained head per subset, its temperature chosen on validation clips.
        streams: the streams to compare; all by default; "sight" and "sound" are all of a medium.
        run: the trained run whose use of its streams is measured, a folder or the name of one of the root's; the root's
            best by default, if it has one.
        folds: folds of source videos, for heads in closed form.
        seed: seed of the folds, the permutations and the trained heads.
        refits: permuted refits of each stream; 0 leaves them out.
        settings: training settings of `head="fit"`; the paper's by default.
        progress: counts fitted heads, or with `head="fit"` epochs; then passes of the run's heads over the test clips.

    Raises:
        DatasetError, StoreError: an unknown stream, splits that are empty or not extracted.
        ExperimentError: settings that don't fit, more than 8 streams, a stream that is the same for all clips.
        RecipeMismatchError: the run was trained on other embeddings.

    >>> from alphafuse import Dataset, contribute
    >>> contribute(Dataset.open("demo"), refits=0)
    Contribution('demo', closed, timesformer +... bits [+..., +...], ast +... bits [+..., +...], n=192)
    """
    dataset = Dataset.open(dataset)
    streams = names_of(streams, dataset.media)
    check_choice("head", head, HEADS)
    check_count("folds", folds)
    if folds < 2:
        raise ExperimentError("folds must be at least 2, not 1: clips are scored by heads trained on the other folds")
    if isinstance(refits, bool) or not isinstance(refits, int) or refits < 0:
        raise ExperimentError(f"refits must be a whole number of at least 0, not {refits!r}")
    settings = replace(settings or TrainSettings(), absent="drop")
    run = resolve_run(run, dataset.root) if run else None
    if run:
        load_run(run, dataset, "test")  # fails before the work starts
    clips = SameClips.complete(dataset, streams, settings=settings)
    names = clips.read
    if len(names) > MOST_STREAMS:
        raise ExperimentError(
            f"{len(names)} streams have 2^{len(names)} subsets, and {MOST_STREAMS} streams are the most: name some "
            "with --stream NAME,NAME"
        )
    clips, unseen = _of_known_classes(clips)
    targets = {split: class_indices(rows.labels, clips.classes) for split, rows in clips.embeddings.items()}
    shares = np.bincount(targets["train"], minlength=len(clips.classes)) / len(targets["train"])
    subsets = subsets_of(names)
    groups = tuple(clips.embeddings["test"].groups)
    epochs = settings.total_epochs if head == "fit" else 1
    total = (len(subsets) - 1 + refits * len(names)) * epochs
    progress.start("contribute", total=total, unit="epoch" if head == "fit" else "head")
    try:
        score: Scorer
        if head == "closed":
            score = _Closed(names, clips, targets, shares, folds, seed, progress)
        else:
            score = _Trained(clips, targets, shares, seed, settings, progress)
        with np.errstate(divide="ignore"):
            log_prior = np.log(shares)
        found = {Subset(): _prior_answers(targets, shares, log_prior), **score(clips.embeddings, subsets[1:], True)}
        everything = subsets[-1]
        null: dict[str, list[Answers]] = {name: [] for name in names}
        for place, name in enumerate(names):
            for refit in range(refits):
                rng = np.random.default_rng([seed, place, refit])
                permuted = {
                    split: PermutedStream.of(rows, name, permuted_across(rows.groups, rng))
                    for split, rows in clips.embeddings.items()
                }
                null[name].append(score(permuted, [everything], False)[everything])
    finally:
        progress.stop()
    not_used = ""
    if not run:
        with suppress(ExperimentError):
            run = best_run(dataset)
        not_used = "" if run else f"no trained run: train one with `alphafuse fit --root {dataset.root}`"
    games = ({some: answers.gain for some, answers in found.items()}, {s: a.hits for s, a in found.items()})
    media = {name: dataset.media[name] for name in names}
    labels = np.asarray([clips.classes[target] for target in targets["test"]], dtype=object)
    return Contribution(
        dataset_name=dataset.name,
        is_demo=dataset.name == DEMO_NAME,
        head=head,
        media=media,
        classes=len(clips.classes),
        clips=clips.counts,
        dropped=clips.dropped,
        unseen=unseen,
        source_videos=len(set(groups)),
        folds=folds,
        seed=seed,
        values=_values(found, groups, names),
        out_of_fold={
            _named(some, names): one.out_of_fold for some, one in found.items() if one.out_of_fold and head == "closed"
        },
        weights={
            (own := _named(some, names)): {name: w for name, w in zip(names, one.weights, strict=True) if name in own}
            for some, one in found.items()
            if one.weights
        },
        streams=_shared(*games, names, groups),
        of_media=_of_media(*games, media, groups),
        gains=_gains(found, null, names, groups),
        by_class=_by_class(*games, names, groups, labels),
        used=use_of_run(run, dataset, seed=seed, progress=progress) if run else None,
        not_used=not_used,
        warning=labelling_warning(dataset),
        provenance={**clips.provenance, "settings": settings.to_json(), "seeds": [seed]},
    )


def _of_known_classes(clips: SameClips) -> tuple[SameClips, int]:
    """Leave out test clips whose class has no training clip: no prior can be given for it."""
    test = clips.embeddings["test"]
    known = np.array([label in clips.trained_labels for label in test.labels])
    if known.all():
        return clips, 0
    if not known.any():
        raise ExperimentError("no test clip has a class of the training clips: see `alphafuse data audit`")
    return replace(clips, embeddings={**clips.embeddings, "test": test.take(known)}), int((~known).sum())


def _prior_answers(targets: Mapping[str, np.ndarray], shares: np.ndarray, log_prior: np.ndarray) -> Answers:
    """Return the answers with no stream: each class's share of the training clips."""
    own = log_prior[targets["test"]]
    out_of_fold = float(prior_hits(shares, targets["train"]).mean())
    return Answers(information_gain(own, own), prior_hits(shares, targets["test"]), (0.0, out_of_fold))


@dataclass(frozen=True)
class _Closed:
    """Scores subsets by ridge heads in closed form."""

    names: tuple[str, ...]
    clips: SameClips
    targets: Mapping[str, np.ndarray]
    shares: np.ndarray
    folds: int
    seed: int
    progress: Progress
    penalties: dict[Subset, float] = field(default_factory=dict)  # where the search for a refit's penalty starts

    def __call__(
        self, sources: Mapping[str, EmbeddingSource], subsets: Sequence[Subset], with_train: bool
    ) -> dict[Subset, Answers]:
        train, test = sources["train"], sources["test"]
        targets, of_test = self.targets["train"], self.targets["test"]
        folds = assign_folds(train.groups, targets, self.folds, seed=self.seed)
        if folds.max() < 1:
            raise ExperimentError("the training clips come from one source video, and folds need at least 2")
        moments = Moments.of(train, targets, folds, classes=len(self.shares), streams=self.names)
        constant = constant_streams(moments)
        if constant:
            raise ExperimentError(
                f"the {constant[0]} embeddings are the same for all training clips: name the other streams (--stream)"
            )
        standard = standardised(moments)
        solver = Folds(standard.moments)
        with np.errstate(divide="ignore"):
            log_prior = np.log(self.shares)
        clips = Clips(train, targets, folds, np.arange(len(train)))
        sample = clips.drawn(SAMPLE, seed=self.seed)
        held_shares = np.stack([of_fold.shares.cpu().numpy() for of_fold in solver.train])
        candidates: list[Candidate] = []
        finals: list[Candidate] = []
        weights: list[tuple[float, ...]] = []
        for some in subsets:
            weighting = tuned(solver, some, near=self.penalties.get(some))
            self.penalties.setdefault(some, weighting.penalty)
            weights.append(weighting.alphas)
            heads = partial(heads_of, solver, weighting, standard)
            evidence = scores_of(sample, [heads], moments)[0] - held_shares[sample.folds]
            sharpness = best_sharpness(evidence, log_prior, sample.targets)

            def probable(weighting: Weighting = weighting, sharpness: float = sharpness) -> list[LinearHead]:
                heads = zip(heads_of(solver, weighting, standard), held_shares, strict=True)
                return [_sharpened(head, shares, sharpness, log_prior) for head, shares in heads]

            def final(weighting: Weighting = weighting) -> list[LinearHead]:
                return [refit_of(solver, weighting, standard)]

            def final_probable(weighting: Weighting = weighting, sharpness: float = sharpness) -> list[LinearHead]:
                return [_sharpened(refit_of(solver, weighting, standard), self.shares, sharpness, log_prior)]

            candidates += [heads, probable]
            finals += [final, final_probable]
            self.progress.advance(1)
        ones = [1.0] * len(finals)
        tested = Clips(test, of_test, np.zeros(len(test), np.int64), np.arange(len(test)))
        scored = score_rows(tested, finals, moments, temperatures=ones)
        gains = information_gain(-scored.log_loss[1::2], log_prior[of_test])  # (subsets, clips)
        out_of_fold: list[tuple[float, float] | None] = [None] * len(subsets)
        if with_train:
            held = score_rows(clips, candidates, moments, temperatures=ones)
            bits = information_gain(-held.log_loss[1::2], log_prior[targets]).mean(axis=1)
            out_of_fold = [*zip(bits.tolist(), held.correct[::2].mean(axis=1).tolist(), strict=True)]
        hits = scored.correct[::2]
        return {some: Answers(gains[i], hits[i], out_of_fold[i], weights[i]) for i, some in enumerate(subsets)}


def _sharpened(head: LinearHead, shares: np.ndarray, sharpness: float, log_prior: np.ndarray) -> LinearHead:
    """Return a head whose scores are logits: the log prior, and the sharpened evidence against it."""
    return LinearHead(head.matrix * sharpness, (head.bias - shares) * sharpness + log_prior)


@dataclass(frozen=True)
class _Trained:
    """Scores subsets by trained heads, whose temperature is chosen on validation clips."""

    clips: SameClips
    targets: Mapping[str, np.ndarray]
    shares: np.ndarray
    seed: int
    settings: TrainSettings
    progress: Progress

    def __call__(
        self, sources: Mapping[str, EmbeddingSource], subsets: Sequence[Subset], with_train: bool
    ) -> dict[Subset, Answers]:
        clips = replace(self.clips, embeddings=sources)
        experiments = [Experiment(streams=tuple(in_order(some))) for some in subsets]
        trained = clips.train(
            experiments, (self.seed,), settings=self.settings, progress=self.progress, splits=("val",)
        )
        with np.errstate(divide="ignore"):
            log_prior = np.log(self.shares)
        found = {}
        for some, one in zip(subsets, trained, strict=True):
            head = one.heads[0].head
            of_val = head.predict_logits(sources["val"]).astype(np.float64)
            logits = head.predict_logits(sources["test"])
            own = log_probabilities(logits, self.targets["test"], fit_temperature(of_val, self.targets["val"]))
            hits = (logits.argmax(axis=1) == self.targets["test"]).astype(np.float64)
            found[some] = Answers(information_gain(own, log_prior[self.targets["test"]]), hits)
        return found


# figures


def _named(some: Subset, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in some)


def _values(
    found: Mapping[Subset, Answers], groups: Sequence[str], names: Sequence[str]
) -> dict[tuple[str, ...], Worth]:
    bits = np.stack([answers.gain for answers in found.values()])
    hits = np.stack([answers.hits for answers in found.values()])
    values = {}
    for some, own, worth in zip(found, hits, worths(bits, hits, groups), strict=True):
        if np.isin(own, (0, 1)).all():  # an accuracy: Wilson's interval stays within 0 and 1
            worth = replace(worth, accuracy=Figure(worth.accuracy.mean, accuracy_interval(own[None], groups)))
        values[_named(some, names)] = worth
    return values


def _shared(gain: Game, hits: Game, players: Sequence[str], groups: Sequence[str]) -> Shared:
    shares = [shapley_values(game, players) for game in (gain, hits)]
    pairs = [shapley_taylor_pairs(game, players) for game in (gain, hits)]

    def with_intervals(found: Sequence[Mapping[Any, np.ndarray]]) -> dict[Any, Worth]:
        if not found[0]:
            return {}
        bits, accuracy = (np.stack(list(game.values())) for game in found)
        return dict(zip(found[0], worths(bits, accuracy, groups), strict=True))

    return Shared(with_intervals(shares), with_intervals(pairs))


def _of_media(gain: Game, hits: Game, media: Mapping[str, str], groups: Sequence[str]) -> Shared | None:
    members: dict[str, list[str]] = {}
    for name, medium in media.items():
        members.setdefault(medium, []).append(name)
    if len(members) < 2 or len(members) == len(media):
        return None
    return _shared(of_groups(gain, members), of_groups(hits, members), list(members), groups)


def _gains(
    found: Mapping[Subset, Answers], null: Mapping[str, Sequence[Answers]], names: Sequence[str], groups: Sequence[str]
) -> dict[str, Gain]:
    whole = found[Subset(names)]
    gains, p_values = {}, []
    for name in names:
        rest = found[Subset(names) - {name}]
        bits = whole.gain - rest.gain
        p_values.append(paired_permutation_test(whole.gain, rest.gain, groups).p_value)
        sums, sizes = group_sums(np.stack([whole.hits, rest.hits]), groups)
        gains[name] = Gain(
            gain_worth(bits, whole.hits, rest.hits, groups),
            1.0,
            tuple(float((one.gain - rest.gain).mean()) for one in null[name]),
            tuple(float((one.hits - rest.hits).mean()) for one in null[name]),
            most_lost(sums[0], sums[1], sizes)[1],
        )
    return {name: replace(gain, p_holm=p) for (name, gain), p in zip(gains.items(), holm(p_values), strict=True)}


def _by_class(
    gain: Game, hits: Game, names: Sequence[str], groups: Sequence[str], labels: np.ndarray
) -> tuple[ClassShare, ...]:
    """Return the streams' values per class of the test clips; classes in alphabetical order."""
    bits, accuracy = (np.stack(list(shapley_values(game, names).values())) for game in (gain, hits))
    of_groups_ = np.asarray(groups, dtype=object)
    rows: list[tuple[str, str, int, Worth]] = []
    tested: list[np.ndarray] = []
    units: list[list[str]] = []
    for label in sorted(set(labels)):
        own = labels == label
        of_class = of_groups_[own].tolist()
        found = worths(bits[:, own], accuracy[:, own], of_class)
        for stream, worth, values in zip(names, found, bits[:, own], strict=True):
            rows.append((label, stream, int(own.sum()), worth))
            tested.append(values)
            units.append(of_class)
    p_values, corrected = discoveries(tested, units)
    return tuple(ClassShare(*row, float(p), float(q)) for row, p, q in zip(rows, p_values, corrected, strict=True))
