"""Predictions of trained heads on the test clips: the contribution of each stream, confusions, the hardest clips.

The fused heads and the heads of each stream alone are compared on the clips that all can use. In a root of one stream,
the heads of that stream take the place of the fused ones, and nothing is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.splits import reachable_ceiling
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.data.streams import title_of
from alphafuse.errors import AlphafuseError, ExperimentError
from alphafuse.heads.model.config import BASELINE
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.scoring.metrics import Evaluation, evaluate_probabilities
from alphafuse.heads.scoring.statistics import compare_pairs
from alphafuse.heads.studies.best_run import best_first
from alphafuse.heads.studies.evaluate import load_embeddings_of, softmax, trained_labels
from alphafuse.heads.studies.runs import HEADS, Run, load_heads, require_recipe
from alphafuse.heads.training.train import class_indices
from alphafuse.predict.prediction import Prediction, Ranked
from alphafuse.predict.shares import no_shares, shares_of
from alphafuse.report.contents import (
    Confusion,
    Contribution,
    HardClip,
    Measure,
    Role,
    Vote,
    Voter,
    Votes,
    role_of,
)
from alphafuse.report.looks import FUSED, Looks, listed, look_of, looks_of, roles_of

from .sentences import named

HARDEST = 12  # number of clips shown
PAIRS = 20  # number of confusions listed


@dataclass(frozen=True)
class Side:
    """The heads of one side: fused, or one stream."""

    role: Role
    run: Run
    path: Path
    heads: tuple[AlphaFusion, ...]

    @property
    def title(self) -> str:
        """Title of the heads' experiment."""
        if self.run.kind == "weigh":
            return "weighed"
        if self.run.kind in HEADS:
            return self.run.experiment.title
        return "untransformed" if self.role == FUSED else f"{title_of(self.role)} only"

    @property
    def name(self) -> str:
        """The title, with the run's name if the name differs."""
        return named(self.title, self.run)


def find_sides(runs: Sequence[Run], roles: Sequence[Role], chosen: bool, problems: list[str]) -> dict[Role, Side]:
    """Find the heads of each role, as far as they exist; the first role is that of the heads that read most.

    If the caller has `chosen` the runs, the fused heads are those of the first run that has fused heads. Else they are
    those of the best run by the rule of `heads.studies.best_run`. The heads of each stream are found by the same rule,
    else in table 1. A damaged run is left out, with a line in `problems`.
    """
    sides: dict[Role, Side] = {}
    for role in roles:
        fits = [run for run in runs if run.kind in HEADS and role_of(run.config["experiment"]) == role]
        tables = [run for run in runs if run.kind == "table1"]
        by_hand = chosen and role == roles[0]
        candidates = (
            [run for run in runs if run in fits or run in tables]
            if by_hand
            else [*_best_first([*fits, *(tables if role == FUSED else [])], problems), *tables]
        )
        for run in candidates:
            path = run.heads_folder(BASELINE.name if role == FUSED else f"{role}-only")
            if run.kind == "table1" and not path.is_dir():
                continue  # a run without saved heads
            try:
                heads = tuple(load_heads(path))
            except AlphafuseError as error:
                problems.append(str(error))
                continue
            sides[role] = Side(role, run, path, heads)
            break
    return sides


def _best_first(runs: Sequence[Run], problems: list[str]) -> list[Run]:
    ranked = best_first([run for run in runs if run.has_heads])
    for run in runs:
        if run.kind in HEADS and run not in ranked:
            problems.append(f"{run.folder} has no usable metrics.json: make it again: {run.command}")
    return ranked


def ask_heads(
    dataset: Dataset, sides: Mapping[Role, Side], *, progress: Callable[[str], object] = lambda _: None
) -> Votes:
    """Compute the predictions of the heads on the test clips.

    Args:
        dataset: a root whose test split is extracted.
        sides: result of `find_sides`; must contain the heads of the first role.
        progress: called with a few words at each step.

    Raises:
        ExperimentError: the heads have different classes, or there is no clip that all can use.
        RecipeMismatchError: the test embeddings have another recipe than a run's.
        DatasetError, StoreError: the test split isn't extracted.
    """
    lead = roles_of(dataset.media)[0]
    embeddings = load_embeddings_of(dataset, "test")
    config = sides[lead].heads[0].config
    classes, train_labels = config.classes, trained_labels(dataset, config)
    targets = class_indices(embeddings.labels, classes)
    probabilities: dict[Role, np.ndarray] = {}
    for role, side in sides.items():
        _require_same_recipes(side, embeddings)
        if side.heads[0].config.classes != classes:
            raise ExperimentError(f"{side.path} has other classes than {sides[lead].path}: train one of them again")
        progress(f"computing predictions of {side.run.name}")
        probabilities[role] = softmax(side.heads, embeddings)  # (seeds, clips, C), NaN for unusable clips
    usable = {role: ~np.isnan(asked[0, :, 0]) for role, asked in probabilities.items()}
    common = np.logical_and.reduce(list(usable.values()))
    if not common.any():
        raise ExperimentError(f"none of the {len(embeddings)} test clips has the embeddings that all heads read")
    on_common = {role: asked[:, common] for role, asked in probabilities.items()}
    kept = embeddings.take(common)
    groups = tuple(kept.groups)
    evaluations = {}
    for role, asked in on_common.items():
        progress(f"scoring the heads of {sides[role].run.name}")
        evaluations[role] = evaluate_probabilities(asked, targets[common], classes, groups)
    correct = {role: asked.argmax(axis=2) == targets[common] for role, asked in on_common.items()}
    voters = {role: _voter(sides[role], found) for role, found in evaluations.items()}
    joined = config.streams if lead == FUSED else ()
    return Votes(
        fused=voters[lead],
        alone={role: voter for role, voter in voters.items() if role != lead},
        clips=len(kept),
        source_videos=len(set(groups)),
        dropped=int((~common).sum()),
        ceiling=reachable_ceiling(train_labels, kept.labels),
        contributions=_contributions(correct, joined, groups),
        joined=tuple(joined),
        confusion=_confusion(evaluations[lead]),
        hardest=_hardest(
            embeddings, probabilities, usable, targets, classes, set(train_labels), joined, looks_of(dataset.media)
        ),
        unreachable=sum(label not in set(train_labels) for label in embeddings.labels),
    )


def _require_same_recipes(side: Side, embeddings: EmbeddingSource) -> None:
    for stream in side.heads[0].config.streams:
        require_recipe(
            side.run.folder,
            stream,
            side.run.config["embeddings"].get(stream, {}),
            embeddings.recipes.get(stream, {}),
            than="the test clips of this root",
            way_out=f": make it again: {side.run.command}",
        )


def _voter(side: Side, found: Evaluation) -> Voter:
    metrics = {name: Measure.of(estimate, found.clips) for name, estimate in found.estimates.items()}
    return Voter(side.role, side.title, side.run, side.path, found.seeds, metrics)


def _contributions(
    correct: Mapping[Role, np.ndarray], joined: Sequence[str], groups: Sequence[str]
) -> tuple[Contribution, ...]:
    """Compare the fused heads with the heads of each of their streams alone, on the same clips."""
    alone = [role for role in correct if role in joined]
    pairs = [(correct[FUSED], correct[role]) for role in alone]
    return tuple(
        Contribution(
            role,
            Measure.between(one.test.difference, one.interval, correct[role].shape[1]),
            one.p_holm,
            one.test.method,
        )
        for role, one in zip(alone, compare_pairs(pairs, groups), strict=True)
    )


def _confusion(found: Evaluation) -> Confusion:
    """Return confusions of the classes that have clips or are predicted."""
    counts = found.confusion  # (C, C), summed over seeds
    occurring = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    counts = counts[np.ix_(occurring, occurring)]
    labels = tuple(found.classes[i] for i in occurring)
    total = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(total, 1)
    n = tuple((total[:, 0] // found.seeds).tolist())
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:PAIRS]
    rows, columns = np.unravel_index(order, mistakes.shape)
    pairs = [
        (labels[i], labels[j], float(shares[i, j]), n[i]) for i, j in zip(rows, columns, strict=True) if mistakes[i, j]
    ]
    return Confusion(labels, shares, n, tuple(pairs))


def _hardest(
    embeddings: EmbeddingSource,
    probabilities: Mapping[Role, np.ndarray],
    usable: Mapping[Role, np.ndarray],
    targets: np.ndarray,
    classes: Sequence[str],
    trained: set[str],
    joined: Sequence[str],
    looks: Looks,
) -> tuple[HardClip, ...]:
    """Return the clips of highest mean loss of the first heads; labels that never occur in training come last."""
    lead = next(iter(probabilities))
    rows = np.flatnonzero(usable[lead])
    of_truth = probabilities[lead][:, rows, targets[rows]]  # (seeds, rows)
    losses = -np.log(np.maximum(of_truth, np.finfo(np.float64).tiny)).mean(axis=0)
    unseen = np.array([embeddings.labels[row] not in trained for row in rows.tolist()])
    order = np.lexsort((-losses, unseen))[:HARDEST]
    found = []
    for position in order.tolist():
        row = int(rows[position])
        label = embeddings.labels[row]
        votes = {}
        for role, asked in probabilities.items():
            if usable[role][row]:
                mean = asked[:, row].mean(axis=0)  # (C,)
                best = int(mean.argmax())
                of_label = float(mean[targets[row]])
                votes[role] = Vote(classes[best], float(mean[best]), of_label, best == int(targets[row]))
        is_reachable = label in trained
        finding = finding_of(votes, is_reachable, lead, joined, looks)
        found.append(HardClip(embeddings.clip_ids[row], label, float(losses[position]), is_reachable, votes, finding))
    return tuple(found)


def with_shares(dataset: Dataset, votes: Votes, sides: Sequence[Side]) -> Votes:
    """Return `votes` with each stream's share of the answers for the hardest clips, of the first heads with exact ones.

    Args:
        dataset: the root of `votes`.
        votes: result of `ask_heads`.
        sides: heads that join the streams, those of `votes` first.
    """
    reason = no_shares(sides[0].heads[0].config)
    side = next((side for side in sides if not no_shares(side.heads[0].config)), None)
    if side is None:
        return replace(votes, no_shares=reason)
    embeddings = load_embeddings_of(dataset, "test")
    try:
        _require_same_recipes(side, embeddings)
    except AlphafuseError as error:
        return replace(votes, no_shares=reason or str(error))
    place = {clip_id: row for row, clip_id in enumerate(embeddings.clip_ids)}
    kept = in_memory(embeddings, [place[clip.clip_id] for clip in votes.hardest])
    classes = side.heads[0].config.classes
    predictions = []
    for clip_id, probabilities in zip(kept.clip_ids, softmax(side.heads, kept).mean(axis=0), strict=True):
        best = () if np.isnan(probabilities).any() else (Ranked(classes[probabilities.argmax()], probabilities.max()),)
        predictions.append(Prediction(Path(clip_id), best, 0, len(side.heads), {}, dataset.media, probabilities))
    found = shares_of(side.heads, kept, predictions, classes)
    hardest = tuple(
        replace(clip, answer=prediction.label or "", shares=shares)
        for clip, prediction, shares in zip(votes.hardest, predictions, found, strict=True)
    )
    return replace(votes, hardest=hardest, shares=side.name, no_shares=reason)


def in_memory(embeddings: EmbeddingSource, rows: Sequence[int]) -> Embeddings:
    """Return these clips' embeddings, in memory."""
    return Embeddings(
        clip_ids=tuple(embeddings.clip_ids[i] for i in rows),
        labels=tuple(embeddings.labels[i] for i in rows),
        groups=tuple(embeddings.groups[i] for i in rows),
        features=embeddings.read_rows(np.asarray(rows)),
    )


def finding_of(votes: Mapping[Role, Vote], is_reachable: bool, lead: Role, joined: Sequence[str], looks: Looks) -> str:
    """Return which streams misled the fused heads on a clip, in words.

    Args:
        votes: role -> vote; streams without heads of their own are missing.
        is_reachable: whether the clip's label occurs in training.
        lead: the role of the heads that are explained.
        joined: the streams that they join; none for heads of one stream.
        looks: how streams are called.
    """
    if not is_reachable:
        return "its label never occurs in training"
    if votes[lead].is_right:
        return "right, with low confidence"
    asked = [name for name in joined if name in votes]
    right = [look_of(looks, name).sense for name in asked if votes[name].is_right]
    wrong = [look_of(looks, name).sense for name in asked if not votes[name].is_right]
    followed = [look_of(looks, name).sense for name in asked if votes[name].label == votes[lead].label]
    every = "both" if len(joined) == 2 else "all"
    if right and wrong:
        return f"{listed(right)} {'was' if len(right) == 1 else 'were'} right, {listed(wrong)} misled"
    if len(asked) < len(joined):
        return f"{listed(followed)} misled" if followed else ""
    if right:
        return "each alone is right, fused is wrong"
    if wrong:
        return f"{every} wrong; fusion followed {followed[0]}" if len(followed) == 1 else f"{every} wrong"
    return ""


def explorable_sides(runs: Sequence[Run], first: Side) -> list[Side]:
    """Return heads for the explorer: the first ones, then other runs by validation accuracy, then table 1's."""
    sides = [first]
    fits = [run for run in runs if run.kind in HEADS and role_of(run.config["experiment"]) == first.role]
    for run in [*_best_first(fits, []), *runs]:
        if run.kind in (*HEADS, "table1") and run.folder != first.run.folder:
            found = find_sides([run], (first.role,), chosen=False, problems=[]).get(first.role)
            if found and found.path not in [side.path for side in sides]:
                sides.append(found)
    return sides
