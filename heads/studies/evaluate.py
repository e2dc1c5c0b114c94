"""Evaluation of a trained run on a split of its dataset, with every metric that VGGSound papers report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.splits import Ceiling, reachable_ceiling
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.errors import DatasetError, ExperimentError
from alphafuse.heads.model.config import HeadConfig, usable_clips
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.scoring.metrics import Evaluation, evaluate_probabilities
from alphafuse.heads.scoring.statistics import Comparison, Interval, PairedTest, compare_pairs
from alphafuse.heads.scoring.vggsounder import VGGSounderScores, vggsounder_scores
from alphafuse.heads.training.train import class_indices
from alphafuse.system.results import Tabular

from .predictions import Predictions, load_embeddings_of, softmax
from .runs import TrainedRun, dataset_of, read_run, resolve_run
from .same_clips import ceiling_json
from .words import compact_note, p_text, score_sentence, signed, signed_range, verdict, whole


@dataclass(frozen=True)
class Against:
    """Comparison with another run's heads on the same clips.

    Attributes:
        run: folder of the other run.
        top1: accuracy of the other run on the clips that both runs can use.
        n: number of these clips.
        interval: interval of the difference, this run minus the other.
        test: exact for two single heads; of several seeds, the t test over seeds and source videos.
    """

    run: Path
    top1: float
    n: int
    interval: Interval
    test: PairedTest

    @property
    def sentence(self) -> str:
        """Which of the two runs is better, or that it is undecided."""
        found = verdict(Comparison(self.interval, self.test, self.test.p_value))
        gap = f"{signed(self.test.difference)} points, {signed_range(self.interval)}, {p_text(self.test.p_value)}"
        result = {"better": "Better than", "worse": "Worse than"}.get(found, "Undecided whether better or worse than")
        return f"{result} {self.run}, {whole(self.top1)} on the same {self.n:,} clips ({gap})."


@dataclass(frozen=True)
class RunEvaluation(Tabular):
    """Result of `evaluate`: the scores of a run on a split.

    Attributes:
        run: the run folder.
        split: "train", "val" or "test".
        head: configuration of the run's heads.
        seeds: number of heads.
        dropped: clips left out because they lack a stream.
        ceiling: number of the clips whose label occurs in training.
        evaluation: the figures.
        against: comparison with another run, if one was named.
        vggsounder: multi-label scores, if requested.
        trained: the run, with its heads.
        root: the root of the scored clips.
        encoders: stream -> {"name", ...} of its encoder, as the split's store records it.

    >>> from alphafuse import evaluate
    >>> found = evaluate("demo/runs/sqrt-ast", split="val")
    >>> found.seeds, found.head.experiment.transform, found.ceiling.accuracy
    (1, 'sqrt', 1.0)
    """

    run: Path
    split: str
    head: HeadConfig
    seeds: int
    dropped: int
    ceiling: Ceiling
    evaluation: Evaluation
    against: Against | None
    vggsounder: VGGSounderScores | None
    trained: TrainedRun
    root: Path
    encoders: Mapping[str, Mapping[str, Any]]

    @property
    def answer(self) -> str:
        """How often the heads are right, and whether they are better than the other run's, in a sentence or two."""
        labels = [row.label for row in self.evaluation.table for _ in range(row.n)]
        said = score_sentence(self.evaluation.top1, labels, self.ceiling.reachable, split=self.split)
        return f"{said} {self.against.sentence}" if self.against else said

    @property
    def note_on_encoders(self) -> str:
        """Names the streams whose encoders stand in for real ones; "" if there are none."""
        return compact_note(self.encoders, self.head.streams)

    def __repr__(self) -> str:
        return f"RunEvaluation({str(self.run)!r}, {self.split}, {self.evaluation!r})"

    def predictions(self, split: str = "") -> Predictions:
        """Return the answers for the clips of this split, or of another one, see `TrainedRun.predictions`."""
        return self.trained.predictions(split or self.split, dataset=self.root)

    def to_json(self) -> dict[str, Any]:
        """Every figure, json-able."""
        against = self.against
        return {
            "answer": self.answer,
            "note_on_encoders": self.note_on_encoders,
            "run": str(self.run),
            "split": self.split,
            "dropped": self.dropped,
            "reachable_ceiling": ceiling_json(self.ceiling),
            **self.evaluation.to_json(),
            "against": against
            and {
                "run": str(against.run),
                "n": against.n,
                "top1": against.top1,
                "interval": asdict(against.interval),
                **asdict(against.test),
            },
            "vggsounder": self.vggsounder and self.vggsounder.to_json(),
        }


def evaluate(
    run: str | Path,
    *,
    split: str = "test",
    dataset: Dataset | str | Path | None = None,
    against: str | Path | None = None,
    vggsounder: bool = False,
) -> RunEvaluation:
    """Score a run's heads on a split.

    Writes no files; see `alphafuse.write_evaluation`.

    Args:
        run: folder of a run with heads, or, with `dataset`, the name of one of its runs.
        split: the split to score. Test scores are no longer unbiased once they were used to choose something.
        dataset: a dataset, or its folder, other than the run's own (`<root>/runs/<name>`), extracted with the same
            recipes.
        against: another run to compare with on the same clips; a folder, or the name of one of the dataset's runs.
        vggsounder: also score VGGSounder's multiple labels; needs the package `vggsounder`.

    Raises:
        ExperimentError: the run has no heads, a label is not among their classes, or they can't use any clip.
        RecipeMismatchError: the embeddings were made by other encoders or another protocol than the run's.
        DatasetError, StoreError: the split doesn't exist or isn't extracted.

    >>> from alphafuse import evaluate
    >>> found = evaluate("demo/runs/sqrt-ast", split="test")
    >>> found.evaluation.clips, found.evaluation.source_videos
    (192, 144)
    >>> found.evaluation.mean_average_precision
    0.9... [0.8..., 0.9...]
    """
    run = resolve_run(run, Dataset.open(dataset).root if dataset else None)
    dataset = Dataset.open(dataset) if dataset else dataset_of(run)
    against = resolve_run(against, dataset.root) if against else None
    trained = load_run(run, dataset, split)
    heads, config = trained.heads, trained.heads[0].config
    embeddings = load_embeddings_of(dataset, split)
    usable = usable_clips(embeddings, config)
    other: Sequence[AlphaFusion] = ()
    common = usable
    if against:
        other = load_run(against, dataset, split).heads
        if other[0].config.classes != config.classes:
            raise ExperimentError(f"{against} has other classes than {run}: compare runs of the same dataset")
        common = usable & usable_clips(embeddings, other[0].config)
    if not common.any():
        raise ExperimentError(f"none of the {len(embeddings)} {split} clips has the embeddings that the heads read")
    kept = embeddings.take(usable)
    probabilities = softmax(heads, kept)
    targets = class_indices(kept.labels, config.classes)
    return RunEvaluation(
        run=run,
        split=split,
        head=config,
        seeds=len(heads),
        dropped=int((~usable).sum()),
        ceiling=reachable_ceiling(trained_labels(dataset, config), kept.labels),
        evaluation=evaluate_probabilities(probabilities, targets, config.classes, kept.groups),
        against=_against(against, heads, other, embeddings.take(common)) if against else None,
        vggsounder=vggsounder_scores(kept.clip_ids, probabilities, config.classes) if vggsounder else None,
        trained=trained,
        root=dataset.root,
        encoders=dataset.store(split).provenance().get("encoders", {}),
    )


def trained_labels(dataset: Dataset, config: HeadConfig) -> frozenset[str]:
    """Return the labels of the training clips that heads of this configuration can use.

    A label is left out if all its training clips lack a stream that the heads read. If the training split isn't
    extracted, all labels of the manifest's training clips are returned.
    """
    clips = dataset.manifest.of_split("train")
    try:
        usable = usable_clips(dataset.embeddings("train", max_bytes=0), config)  # max_bytes=0: features stay on disk
    except (DatasetError, ExperimentError):  # another root, where the training split may not be extracted
        usable = np.ones(len(clips), bool)
    return frozenset(compress(clips.clip_labels, usable))


def load_run(run: Path, dataset: Dataset, split: str) -> TrainedRun:
    """Read a run, and check that the split's embeddings have its recipes."""
    trained = read_run(run)
    trained.require_recipes_of(dataset, split)
    return trained


def _against(
    run: Path, heads: Sequence[AlphaFusion], other: Sequence[AlphaFusion], embeddings: EmbeddingSource
) -> Against:
    targets = class_indices(embeddings.labels, heads[0].config.classes)
    ours, theirs = (
        np.stack([head.predict_logits(embeddings).argmax(axis=1) == targets for head in some])
        for some in (heads, other)
    )  # (seeds, clips) each
    comparison = compare_pairs([(ours, theirs)], tuple(embeddings.groups))[0]
    return Against(run, float(theirs.mean()), len(targets), comparison.interval, comparison.test)
