"""`weigh`: how much each stream should weigh, in closed form, with an interval; and the head that follows from it.

    statistics of the training clips -> profile over weightings -> confidence set -> what to do -> head, tested once

Trained heads can't answer this: a layer undoes any factor on its inputs, so a sweep of trained heads mixes the weight
with the optimisation. In a ridge the weight is a prior (see `heads.closed.ridge`) and the answer is exact. Everything
is chosen on folds of the training clips, by source video. Validation only ranks the head among other runs, and test
clips are scored once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from alphafuse.data.dataset import Dataset
from alphafuse.data.labelling import labelling_warning
from alphafuse.data.streams import SENSES, names_of, title_of
from alphafuse.errors import ExperimentError
from alphafuse.heads.closed.mixture import LateWeights
from alphafuse.heads.closed.moments import effective_rank
from alphafuse.heads.closed.neighbours import Neighbours
from alphafuse.heads.closed.profile import OCTAVES, of_ratio
from alphafuse.heads.closed.recommend import COARSE, Laboratory, Profile, Recommendation, ratio_in_words
from alphafuse.heads.closed.ridge import Weighting
from alphafuse.heads.closed.rows import drawn
from alphafuse.heads.model.config import Experiment, HeadConfig
from alphafuse.heads.model.head import AlphaFusion, Normalization
from alphafuse.heads.scoring.choice import Choice, choose_weight
from alphafuse.heads.scoring.statistics import Comparison, compare_pairs
from alphafuse.heads.scoring.vggsounder import ModalityConfusion, modality_confusion
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import class_indices
from alphafuse.system.devices import choose_device
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.results import Tabular

from .predictions import Predictions
from .runs import TrainedRun, run_folder
from .same_clips import EVALUATED, SameClips, SplitResult
from .words import compact_note, listed

FOLDS = 5
MOST_QUERIES = 2000  # validation clips that neighbours vote on
PROBE_CELLS = 2_000_000_000  # clips x dimensions x classes: the logistic probe takes minutes to here, hours beyond
PROBE_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # scikit-learn's C, chosen on validation clips
CHOSEN, EQUAL = "chosen", "equal"
SETTINGS = TrainSettings(hidden=(), dropout=0.0, normalize="variance")


@dataclass(frozen=True)
class Tested:
    """A head in closed form on validation and test clips.

    Attributes:
        val, test: results.
        comparison: the chosen head against this one on test, Holm-corrected; None for the chosen one itself, also
            under its stream's name if it reads one stream.
    """

    val: SplitResult
    test: SplitResult
    comparison: Comparison | None

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return {
            "val": self.val.to_json(),
            "test": self.test.to_json(),
            "chosen_against": self.comparison and self.comparison.to_json(),
        }


@dataclass(frozen=True)
class NeighbourVotes:
    """Validation clips labelled by their nearest training clips, at several weights: no head, no penalty.

    Attributes:
        streams: the streams.
        alphas: (candidates, streams) weights; of two streams half octaves of their ratio, equal weights in the middle.
        accuracy: (candidates,) top-1 in [0, 1].
        choice: confidence set and recommendation by the votes' log loss.
        queries: validation clips, at most 2,000.
    """

    streams: tuple[str, ...]
    alphas: np.ndarray
    accuracy: np.ndarray
    choice: Choice
    queries: int

    def weight_of(self, candidate: int) -> float:
        """Return the last stream's weight against the first one's, as similarity sees it."""
        return float(self.alphas[candidate][-1] / self.alphas[candidate][0])

    def to_json(self) -> dict[str, Any]:
        """The fields, json-able."""
        return {
            "streams": list(self.streams),
            "queries": self.queries,
            "chosen": self.choice.chosen,
            "candidates": [
                {"weights": alphas.tolist(), "top1": float(top1), "loss": float(loss), "inside": bool(inside)}
                for alphas, top1, loss, inside in zip(
                    self.alphas, self.accuracy, self.choice.losses, self.choice.inside, strict=True
                )
            ],
        }


@dataclass(frozen=True)
class Weighing(Tabular):
    """Result of `weigh`.

    Attributes:
        dataset_name: name of the dataset.
        streams: the streams that were to be weighed, in order.
        media: stream -> medium.
        clips, dropped: split -> clips used, and left out because they lack a stream.
        source_videos: source videos of the training clips.
        arguments: streams, folds, seed, everything and vggsounder, as in the call.
        absent: the root's streams that aren't extracted, if none were named.
        constant: streams that are the same for all clips, left out.
        found: what to do about each stream, with the profile and the confidence set behind it.
        raw: stream -> factor on its raw embeddings, 1 for the first stream: the alphas that `fit` takes.
        ranks: stream -> effective rank of its embeddings (Roy and Vetterli 2007).
        dims: stream -> dimension.
        zscored: the profile if every dimension is scaled to variance 1 first; None for one stream.
        heads: "chosen", "equal" if that is another, and each single stream, that of the least out-of-fold error first.
        probe: a logistic head on the same weighted streams; None if it takes long and wasn't asked for, or if all
            training clips have one label.
        late: weights of late fusion; None unless asked for.
        confusion: how often sight or sound alone knows one of VGGSounder's labels that the chosen head misses; None
            unless asked for.
        neighbours: the vote of nearest neighbours at several weights; None for one stream.
        warning: what the way the labels were given can hide, see `labelling_warning`; None if nothing.
        head: the chosen head: linear, on centred and scaled embeddings.
        provenance: inputs of the study, for config.json.
        root: the dataset's folder.

    >>> from alphafuse import Dataset, weigh
    >>> found = weigh(Dataset.open("demo"))
    >>> found.verdict
    "Keep both streams and weigh them alike: ...
    >>> found.heads["chosen"].test
    SplitResult(test: n=192, top1=0.8... [0.7..., 0.8...], loss=0.5... [0.3..., 0.6...])
    """

    dataset_name: str
    streams: tuple[str, ...]
    media: Mapping[str, str]
    clips: Mapping[str, int]
    dropped: Mapping[str, int]
    source_videos: int
    arguments: Mapping[str, Any]
    absent: tuple[str, ...]
    constant: tuple[str, ...]
    found: Recommendation
    raw: Mapping[str, float]
    ranks: Mapping[str, float]
    dims: Mapping[str, int]
    zscored: Profile | None
    heads: Mapping[str, Tested]
    probe: Tested | None
    late: LateWeights | None
    confusion: ModalityConfusion | None
    neighbours: NeighbourVotes | None
    warning: str | None
    head: AlphaFusion
    provenance: Mapping[str, Any]
    root: Path

    def __repr__(self) -> str:
        weights = ", ".join(f"{stream}: {weight:.2g}" for stream, weight in self.weights.items())
        top1 = self.heads[CHOSEN].test.top1
        return f"Weighing({self.dataset_name!r}, {weights}, test top1={top1!r} n={self.clips['test']})"

    @property
    def weights(self) -> dict[str, float]:
        """Stream -> recommended weight on the scale of equal variances, geometric mean 1; 0 for one to drop."""
        return dict(zip(self.dims, self.found.chosen.alphas, strict=True))

    @property
    def best_single(self) -> str:
        """The stream whose head alone has the least out-of-fold error."""
        return next(name for name in self.heads if name not in (CHOSEN, EQUAL))

    @property
    def verdict(self) -> str:
        """What to do, in a sentence."""
        return verdict_of(self.found, tuple(self.dims), self.clips["train"], self.constant)

    def predictions(self, split: str = "test") -> Predictions:
        """Return the chosen head's answers for every clip of a split, see `TrainedRun.predictions`."""
        run = TrainedRun(run_folder(self.root, "weigh"), self.head.config.experiment, (self.head,), self.config(), {})
        return run.predictions(split, dataset=self.root)

    @property
    def note_on_encoders(self) -> str:
        """Names the streams whose encoders stand in for real ones; "" if there are none."""
        return compact_note(self.provenance["encoders"], self.dims)

    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "experiment": asdict(self.head.config.experiment),
            "head": self.head.config.to_json(),
            **self.provenance,
            "weigh": dict(self.arguments),
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
        }

    def to_json(self) -> dict[str, Any]:
        """Every figure, json-able."""
        chosen, found = self.heads[CHOSEN], self.found
        return {
            "answer": self.verdict,
            "note_on_encoders": self.note_on_encoders,
            "dataset": self.dataset_name,
            "verdict": self.verdict,
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
            "source_videos": self.source_videos,
            "streams": list(self.streams),
            "absent": list(self.absent),
            "constant": list(self.constant),
            "weights": self.weights,
            "raw_alphas": dict(self.raw),
            "removed": list(found.removed),
            "without": {stream: asdict(cost) | {"can_go": cost.can_go} for stream, cost in found.without.items()},
            "profile": found.profile and found.profile.to_json(),
            "final": found.final and found.final.to_json(),
            "zscored": self.zscored and self.zscored.to_json(),
            "effective_ranks": dict(self.ranks),
            "best_single": self.best_single,
            "heads": {name: head.to_json() for name, head in self.heads.items()},
            "probe": self.probe and self.probe.to_json(),
            "confusion": self.confusion and self.confusion.to_json(),
            "neighbours": self.neighbours and self.neighbours.to_json(),
            "warning": self.warning,
            "late": self.late and self.late.to_json(tuple(self.dims)),
            "val": chosen.val.to_json(),
            "test": chosen.test.to_json(),
        }


def verdict_of(found: Recommendation, streams: Sequence[str], clips: int, constant: Sequence[str] = ()) -> str:
    """Say what to do about the streams, so that it can be acted on; "undecided" where the clips can't decide."""
    if found.profile is None and constant:
        verb = "is" if len(constant) == 1 else "are"
        return f"Use {title_of(streams[0])} alone: {_titles(constant)} {verb} the same for all clips."
    if found.profile is None:
        return f"{title_of(streams[0])} is the only stream: there is nothing to weigh it against."
    if not found.profile.is_learned:
        return (
            f"Undecided: from {clips:,} training clips no stream predicts the labels better than guessing, so there is "
            "nothing to weigh yet. More clips per class would help."
        )
    can_go = [stream for stream, cost in found.without.items() if cost.can_go]
    if found.removed:
        kept = [stream for stream in streams if stream not in found.removed]
        costs = " and ".join(f"{_points(found.without[stream].bound)} without {title_of(stream)}" for stream in can_go)
        if len(streams) == 2 and len(can_go) == 2:
            return f"Either stream can go, and any weight will do: you lose at most {costs} (95%). {_kept(kept)}."
        gone = _titles(found.removed)
        most = _points(found.costs[found.removed[-1]].bound)
        lost = f"without {'it' if len(found.removed) == 1 else 'them'} you lose at most {most} of accuracy (95%)"
        rest = _weights(found.final, clips, _titles(kept)) if found.final else f"{_kept(kept)}."
        return f"Drop {gone}: {lost}. {rest}"
    assert found.final is not None
    return _weights(found.final, clips, "both streams" if len(streams) == 2 else _titles(streams))


def _kept(streams: Sequence[str]) -> str:
    return f"Here {_titles(streams)} is kept"


def _weights(profile: Profile, clips: int, kept: str) -> str:
    """Say how streams that stay should weigh."""
    two = len(profile.streams) == 2
    last = profile.streams[-1]
    keep = f"Keep {kept}"
    first = title_of(profile.streams[0])
    if not profile.choice.is_equal_excluded:
        if two:
            span = f"no limit of {title_of(last)}'s weight found"
            if any(profile.limits_of(last)):
                span = f"{title_of(last)} could weigh {profile.limits_in_words(last)} times as much as {first}"
            return f"{keep} and weigh them alike: {clips:,} clips don't show that another weight is better ({span})."
        return f"{keep} and weigh them alike: {clips:,} clips don't show that other weights are better."
    if two:
        weight = profile.relative(profile.chosen)[last]
        return (
            f"{keep}: {title_of(last)} should weigh {ratio_in_words(weight)} times as much as {first} "
            f"({profile.limits_in_words(last)} times, 95%)."
        )
    weights = profile.relative(profile.chosen)
    parts = [
        f"{title_of(stream)} {ratio_in_words(weights[stream])} ({profile.limits_in_words(stream)})"
        for stream in profile.streams
    ]
    return f"{keep}, with the weights {', '.join(parts)} (95%)."


def _points(share: float) -> str:
    return f"{max(100 * share, 0):.1f} points"


def _titles(streams: Sequence[str]) -> str:
    return listed([title_of(stream) for stream in streams])


def weigh(
    dataset: Dataset | str | Path,
    *,
    streams: str | Sequence[str] = (),
    folds: int = FOLDS,
    seed: int = 0,
    everything: bool = False,
    vggsounder: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Weighing:
    """Find how much each stream should weigh, and make the head with these weights.

    Writes no files; see `alphafuse.write_weigh`.

    Args:
        dataset: a dataset, or its folder, whose three splits are extracted.
        streams: the streams to weigh; all that are extracted by default; "sight" and "sound" are all of a medium.
        folds: folds of source videos within train, at least 2.
        seed: decides the folds, and the draws of intervals.
        everything: also the weights of late fusion, and the logistic probe even if it takes long.
        vggsounder: also VGGSounder's modality confusion, on VGGSound's test clips; needs the package `vggsounder`.
        progress: rounds of clips and of weightings.

    Raises:
        DatasetError, StoreError: an unknown stream, splits that are empty or not extracted.
        ExperimentError: no stream that varies, or source videos for fewer than two folds.

    >>> from alphafuse import Dataset, weigh
    >>> found = weigh(Dataset.open("demo"), streams=["ast"])
    >>> found.weights, found.verdict
    ({'ast': 1.0}, 'AST is the only stream: there is nothing to weigh it against.')
    """
    dataset = Dataset.open(dataset)
    streams = names_of(streams, dataset.media)
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise ExperimentError(f"folds must be a whole number of at least 2, not {folds!r}")
    clips = SameClips.complete(dataset, streams, settings=SETTINGS)
    names = clips.read
    rows = clips.embeddings["train"]
    laboratory = Laboratory(
        rows,
        class_indices(rows.labels, clips.classes),
        len(clips.classes),
        names,
        folds=folds,
        seed=seed,
        device=choose_device(SETTINGS.device),
        progress=progress,
    )
    found = laboratory.recommend()
    heads = _heads(laboratory, clips, found)
    chosen = heads[CHOSEN]
    cells = len(rows) * sum(laboratory.moments.dims.values()) * len(clips.classes)
    several = len(laboratory.streams) > 1
    can_learn = len(set(rows.labels)) > 1
    return Weighing(
        dataset_name=dataset.name,
        streams=names,
        media={stream: dataset.media[stream] for stream in names},
        clips=clips.counts,
        dropped=clips.dropped,
        source_videos=len(set(rows.groups)),
        arguments={
            "streams": list(streams),
            "folds": folds,
            "seed": seed,
            "everything": everything,
            "vggsounder": vggsounder,
        },
        absent=() if streams else tuple(stream for stream in dataset.media if stream not in names),
        constant=laboratory.constant,
        found=found,
        raw=_raw(laboratory, found.chosen),
        ranks={stream: effective_rank(values) for stream, values in laboratory.standard.variances.items()},
        dims=laboratory.moments.dims,
        zscored=laboratory.zscored() if several else None,
        heads=_tested(heads, clips),
        probe=_probe(laboratory, clips, found.chosen) if can_learn and (everything or cells <= PROBE_CELLS) else None,
        late=laboratory.late() if everything and several else None,
        confusion=_confusion(laboratory, clips, chosen, dataset.media) if vggsounder else None,
        neighbours=_neighbours(clips, laboratory.streams, found.chosen, seed, progress) if several else None,
        warning=labelling_warning(dataset),
        head=chosen,
        provenance={**clips.provenance, "settings": SETTINGS.to_json(), "seeds": [seed]},
        root=dataset.root,
    )


def _raw(laboratory: Laboratory, chosen: Weighting) -> dict[str, float]:
    """Return weights as factors on raw embeddings, 1 for the first stream that weighs something."""
    scales = laboratory.standard.scales
    factors = {stream: alpha / scales[stream] for stream, alpha in zip(laboratory.streams, chosen.alphas, strict=True)}
    first = next(factor for factor in factors.values() if factor)
    return {stream: factor / first for stream, factor in factors.items()}


def _heads(laboratory: Laboratory, clips: SameClips, found: Recommendation) -> dict[str, AlphaFusion]:
    """Return the chosen head, the equal one if it is another, and each stream's, that of the least error first."""
    singles = {stream: laboratory.single(stream) for stream in laboratory.streams}
    weightings = {CHOSEN: found.chosen}
    if len(set(found.chosen.alphas)) > 1:
        weightings[EQUAL] = laboratory.equal()
    for stream in sorted(singles, key=lambda stream: singles[stream].loss):
        weightings[stream] = singles[stream]
    return {name: closed_head(laboratory, weighting, clips) for name, weighting in weightings.items()}


def closed_head(laboratory: Laboratory, weighting: Weighting, clips: SameClips) -> AlphaFusion:
    """Return a ridge head as a linear head on the centred, scaled embeddings of the streams that weigh something."""
    linear, temperature = laboratory.refit(weighting)
    moments, scales = laboratory.moments, laboratory.standard.scales
    used = [stream for stream, alpha in zip(laboratory.streams, weighting.alphas, strict=True) if alpha]
    experiment = Experiment(streams=tuple(used), normalize="variance").of(clips.streams)
    head = AlphaFusion(HeadConfig(moments.dims, clips.classes, experiment, SETTINGS))
    mean = moments.sums.sum(axis=(0, 1)) / moments.counts.sum()  # of the shifted vectors
    parts = []
    with torch.no_grad():
        for stream in head.config.streams:
            own = moments.columns[stream]
            normalization = cast(Normalization, head.normalizations[stream])
            normalization.mean.copy_(torch.from_numpy(moments.shift[own] + mean[own]))
            normalization.std.fill_(scales[stream])
            parts.append(linear.matrix[own] * scales[stream])
        head.linears[0].weight.copy_(torch.from_numpy(np.concatenate(parts).T / temperature))
        head.linears[0].bias.copy_(torch.from_numpy((linear.bias + mean @ linear.matrix) / temperature))
    return head.eval()


def _tested(heads: Mapping[str, AlphaFusion], clips: SameClips) -> dict[str, Tested]:
    """Score heads on validation and, once, on test; compare the chosen one with the others."""
    results = {
        name: [clips.score_logits(head.predict_logits(clips.embeddings[split])[None], split) for split in EVALUATED]
        for name, head in heads.items()
    }
    streams = heads[CHOSEN].config.streams
    others = [name for name in heads if name != CHOSEN and (name,) != streams]
    own = results[CHOSEN][1]
    pairs = [(own.scores.top1, results[name][1].scores.top1) for name in others]
    compared = dict(zip(others, compare_pairs(pairs, own.groups), strict=True))
    return {name: Tested(val, test, compared.get(name)) for name, (val, test) in results.items()}


def _confusion(
    laboratory: Laboratory, clips: SameClips, chosen: AlphaFusion, media: Mapping[str, str]
) -> ModalityConfusion:
    """Compare the chosen head on test clips with a head of all streams of each medium, weighed alike."""
    test = clips.embeddings["test"]
    single = {}
    for medium, sense in SENSES.items():
        own = [float(media[stream] == medium) for stream in laboratory.streams]
        if any(own):
            single[sense] = closed_head(laboratory, laboratory.problem.best(own), clips).predict_logits(test)
    return modality_confusion(test.clip_ids, chosen.predict_logits(test), single, clips.classes)


def _neighbours(
    clips: SameClips, streams: Sequence[str], chosen: Weighting, seed: int, progress: Progress
) -> NeighbourVotes:
    """Let training clips vote on validation clips: at ratios of two streams' weights, or at equal and chosen ones."""
    count = len(streams)
    ratios = np.arange(-OCTAVES, OCTAVES + COARSE, COARSE)
    alphas = np.array([of_ratio(ratio) for ratio in ratios] if count == 2 else [(1.0,) * count, chosen.alphas])
    val = clips.embeddings["val"]
    queries = val.take(drawn(len(val), MOST_QUERIES, seed=seed))
    progress.start("neighbours", total=len(queries))
    try:
        found = Neighbours(clips.embeddings["train"], streams=streams).score(
            queries, alphas, clips.classes, progress=progress
        )
    finally:
        progress.stop()
    choice = choose_weight(found.loss[:, None], queries.groups, equal=len(alphas) // 2 if count == 2 else 0, seed=seed)
    return NeighbourVotes(tuple(streams), alphas, found.correct.mean(axis=1), choice, len(queries))


def _probe(laboratory: Laboratory, clips: SameClips, chosen: Weighting) -> Tested:
    """Train logistic heads (L-BFGS) on the weighted streams; the penalty is chosen by loss on validation clips."""
    weights = np.repeat(chosen.alphas, [*laboratory.standard.moments.dims.values()])

    def vectors(split: str) -> np.ndarray:
        rows = clips.embeddings[split].read_rows(np.arange(clips.counts[split]))
        x = np.concatenate([rows[stream] for stream in laboratory.streams], axis=1)
        return ((x - laboratory.moments.shift) @ laboratory.standard.matrix) * weights

    def score(model: LogisticRegression, split: str) -> SplitResult:
        probabilities = np.zeros((clips.counts[split], len(clips.classes)))
        probabilities[:, model.classes_] = model.predict_proba(x[split])
        return clips.score_logits(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))[None], split)

    x = {split: vectors(split) for split in clips.embeddings}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        warnings.filterwarnings("ignore", category=ConvergenceWarning)  # as good as it gets after 1000 steps
        models = [
            LogisticRegression(C=strength, max_iter=1000).fit(x["train"], laboratory.clips.targets)
            for strength in PROBE_STRENGTHS
        ]
    val = [score(model, "val") for model in models]
    best = min(range(len(models)), key=lambda i: val[i].loss.mean)
    return Tested(val[best], score(models[best], "test"), None)
