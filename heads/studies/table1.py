"""The paper's table 1 on any dataset: its six experiments, the untransformed baseline and each stream alone.

It needs the paper's two streams, and reads these alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from alphafuse.data.dataset import Dataset
from alphafuse.data.power import LEVEL
from alphafuse.data.sources.demo import DEMO_NAME
from alphafuse.data.splits import Ceiling
from alphafuse.data.streams import DEFAULT_STREAMS
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import BASELINE, Experiment
from alphafuse.heads.scoring.statistics import Comparison
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import TrainedHead
from alphafuse.system.cluster import require_engine
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.results import Tabular

from .same_clips import SameClips, SplitResult, against, ceiling_json, epochs_of, resolvable_gap, seed_range
from .words import compact_note, fusing, fusing_gains, listed, signed, told_apart

TABLE1_SEEDS = 5  # 45 heads: well under a minute on the demo with 2 cores
PAPER_TEST_CLIPS = 18  # in the authors' notebook; the paper says 20

PAPER_STREAMS = ("timesformer", "ast")
MEDIA = {stream.name: stream.medium for stream in DEFAULT_STREAMS}
PAPER_SIX = tuple(
    Experiment(transform, on=stream).of(PAPER_STREAMS)
    for stream in PAPER_STREAMS
    for transform in ("sqrt", "pos-scalar", "neg-scalar")
)
TABLE1: tuple[Experiment, ...] = (
    BASELINE.of(PAPER_STREAMS),
    *PAPER_SIX,  # the paper's table 1, in its order
    *(Experiment(streams=(stream,)).of(PAPER_STREAMS) for stream in PAPER_STREAMS),
)
FIGURE3 = PAPER_SIX[1]  # the paper's figure 3 shows the losses of experiment 2


@dataclass(frozen=True)
class Paper:
    """Figures of the paper and of its authors' notebook for one of the six experiments.

    Attributes:
        experiment: number of the experiment in table 1, from 1.
        accuracy, loss: figures of table 1, rounded.
        correct: test clips that the notebook's head classified correctly, of `PAPER_TEST_CLIPS`.
        notebook_loss: the notebook's test loss, unrounded.
        train_loss, val_loss: (25,) the notebook's losses per epoch.
    """

    experiment: int
    accuracy: float
    loss: float
    correct: int
    notebook_loss: float
    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]


@cache
def paper_results() -> Mapping[Experiment, Paper]:
    """Return the six experiments with the paper's figures, in the paper's order (from paper_results.json)."""
    rows = json.loads(resources.files(__package__).joinpath("paper_results.json").read_text(encoding="utf-8"))
    return {
        Experiment(row["transform"].replace("_", "-"), on=row["on"].lower()).of(PAPER_STREAMS): Paper(
            experiment=row["experiment"],
            accuracy=row["paper_table1_accuracy"],
            loss=row["paper_table1_loss"],
            correct=round(row["test_accuracy"] * PAPER_TEST_CLIPS),
            notebook_loss=row["test_loss"],
            train_loss=tuple(row["train_loss"]),
            val_loss=tuple(row["val_loss"]),
        )
        for row in rows
    }


@dataclass(frozen=True)
class Table1Row:
    """One row of table 1; `comparison` is None for the baseline itself, `paper` for rows that the paper lacks."""

    experiment: Experiment
    val: SplitResult
    test: SplitResult
    comparison: Comparison | None
    paper: Paper | None
    heads: tuple[TrainedHead, ...]

    def __repr__(self) -> str:
        return f"Table1Row({self.experiment.title}: test top1={self.test.top1!r})"

    def to_json(self) -> dict[str, Any]:
        """Every figure of the row, json-able."""
        paper = self.paper
        return {
            "experiment": {**asdict(self.experiment), "name": self.experiment.name, "title": self.experiment.title},
            "val": self.val.to_json(),
            "test": self.test.to_json(),
            "against_baseline": self.comparison and self.comparison.to_json(),
            "paper": paper
            and {
                "experiment": paper.experiment,
                "accuracy": paper.accuracy,
                "loss": paper.loss,
                "notebook_correct": paper.correct,
                "notebook_clips": PAPER_TEST_CLIPS,
                "notebook_loss": paper.notebook_loss,
            },
        }


@dataclass(frozen=True)
class Table1(Tabular):
    """The paper's table 1 on a dataset.

    Attributes:
        dataset_name: name of the dataset.
        is_demo: whether the dataset is the generated demo.
        is_paper_split: whether the dataset is the paper's split of VGGSound, complete and in protocol `notebook`.
        unread: the dataset's other streams, which the study leaves alone.
        classes: number of classes.
        clips, dropped: split -> number of clips used by every row, and left out because they lack a stream.
        ceiling: reachable ceiling of the test split.
        seeds, settings: seeds and training settings of every row.
        rows: all rows, in the order of `TABLE1`.
        resolvable_gap: smallest difference in test top-1 that a paired test on this split finds in 4 of 5 cases, with
            Holm's correction for the table's comparisons.
        provenance: inputs of the study, for config.json.

    >>> from alphafuse import Dataset, TrainSettings, table1
    >>> table = table1(Dataset.open("demo"), seeds=1, settings=TrainSettings(epochs=2, hidden=(16,)))
    >>> table.clips, table.ceiling.accuracy
    ({'train': 230, 'val': 26, 'test': 192}, 1.0)
    >>> table.verdict
    "192 test clips can't settle differences of this size: ..."
    """

    dataset_name: str
    is_demo: bool
    is_paper_split: bool
    unread: tuple[str, ...]
    classes: int
    clips: Mapping[str, int]
    dropped: Mapping[str, int]
    ceiling: Ceiling
    seeds: tuple[int, ...]
    settings: TrainSettings
    rows: tuple[Table1Row, ...]
    resolvable_gap: float
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        first = self.rows[0]
        sizes = f"{len(self.rows)} rows, {len(self.seeds)} seeds, n={first.test.n}"
        return f"Table1({self.dataset_name!r}, {sizes}, {first.experiment.title} test top1={first.test.top1!r})"

    @property
    def largest_gap(self) -> float:
        """Largest difference in test top-1 between the baseline and one of the six transformed experiments."""
        return max(abs(row.comparison.test.difference) for row in self.rows if row.paper and row.comparison)

    @property
    def verdict(self) -> str:
        """One sentence that says whether the six experiments differ significantly from the baseline."""
        n, gap, largest = self.clips["test"], 100 * self.resolvable_gap, 100 * self.largest_gap
        compared = [(row.experiment.title, row.comparison) for row in self.rows if row.paper and row.comparison]
        parts, count = [], 0
        for word, sign in (("better", 1), ("worse", -1)):
            found = [f"{name} {signed(one.test.difference)}" for name, one in compared if told_apart(one) == sign]
            count += len(found)
            parts += [f"{len(found)} {'is' if len(found) == 1 else 'are'} {word} ({', '.join(found)})"] if found else []
        if parts:
            rest = "" if count == len(compared) else ", the rest undecided"
            return (
                f"{listed(parts)} than the untransformed head{rest} (points on {n} test clips; Holm-corrected p < "
                f"{1 - LEVEL:.2f})."
            )
        if self.largest_gap < self.resolvable_gap:
            return (
                f"{n} test clips can't settle differences of this size: the largest among the six is {largest:.1f} "
                f"points, and a paired test among {len(self.rows) - 1} needs about {gap:.1f} points to find one in 4 "
                "of 5 repetitions."
            )
        return (
            f"None of the six can be told from the untransformed head: the largest difference is {largest:.1f} points, "
            f"and {n} test clips resolve differences from about {gap:.1f} points on (paired test, 80% power)."
        )

    @property
    def answer(self) -> str:
        """What to do, in two sentences: about both streams or one, then about the transforms."""
        first, alone = self.rows[0], [row for row in self.rows[1:] if len(row.experiment.streams) == 1]
        gains = fusing_gains((row.experiment.streams[0], row.test, row.comparison) for row in alone if row.comparison)
        of_six = f"Of the paper's six transforms: {self.verdict[0].lower()}{self.verdict[1:]}"
        return f"{fusing(first.test, gains, MEDIA)} {of_six}"

    @property
    def note_on_encoders(self) -> str:
        """Names the streams whose encoders stand in for real ones; "" if there are none."""
        return compact_note(self.provenance["encoders"], PAPER_STREAMS)

    @property
    def note_on_streams(self) -> str:
        """One sentence that says which streams were not read; empty if the dataset has no others."""
        if not self.unread:
            return ""
        read = " and ".join(PAPER_STREAMS)
        return f"Read: {read}, as in the paper. Not read: {', '.join(self.unread)} (`alphafuse compare` reads all)."

    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "experiments": [asdict(row.experiment) for row in self.rows],
            **self.provenance,
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
        }

    def to_json(self) -> dict[str, Any]:
        """Every figure of the table, json-able (no NaN)."""
        return {
            "answer": self.answer,
            "note_on_encoders": self.note_on_encoders,
            "dataset": self.dataset_name,
            "is_demo": self.is_demo,
            "is_paper_split": self.is_paper_split,
            "unread_streams": list(self.unread),
            "classes": self.classes,
            "clips": dict(self.clips),
            "dropped": dict(self.dropped),
            "reachable_ceiling": ceiling_json(self.ceiling),
            "seeds": list(self.seeds),
            "smallest_resolvable_gap": self.resolvable_gap,
            "largest_gap": self.largest_gap,
            "verdict": self.verdict,
            "rows": [row.to_json() for row in self.rows],
        }


def table1(
    dataset: Dataset | str | Path,
    *,
    seeds: int = TABLE1_SEEDS,
    first_seed: int = 0,
    settings: TrainSettings | None = None,
    progress: Progress = NO_PROGRESS,
    engine: str = "local",
    address: str | None = None,
) -> Table1:
    """Train the paper's six experiments, the untransformed baseline and both single-stream heads.

    Every row uses the same clips: with `settings.absent="drop"`, those that have both streams. Other streams of the
    dataset aren't read, and change nothing. Writes no files; see `alphafuse.write_table1`.

    Args:
        dataset: a dataset, or its folder, whose three splits are extracted.
        seeds, first_seed: one head for each of the seeds first_seed, first_seed + 1, ... and each row.
        settings: training settings; the paper's by default.
        progress: counts finished epochs, `len(TABLE1) * seeds * settings.total_epochs` in total.
        engine: "local" trains on this machine, "ray" on the nodes of a Ray cluster; the figures are the same.
        address: address of the Ray cluster, such as "auto"; None uses the environment variable RAY_ADDRESS, or starts
            Ray on this machine.

    Raises:
        DatasetError, StoreError: splits that are empty or not extracted.
        ExperimentError: the dataset lacks one of the paper's streams, settings that don't fit, or a loss that is not
            finite.
        ClusterError: an unknown engine, or a Ray cluster that can't be used.

    >>> from alphafuse import Dataset, TrainSettings, table1
    >>> quick = TrainSettings(epochs=2, hidden=(16,))  # only for speed: use the defaults for meaningful figures
    >>> table = table1(Dataset.open("demo"), seeds=1, settings=quick)
    >>> for row in table.rows:
    ...     print(row.experiment.title, row.paper and row.paper.accuracy)
    untransformed None
    TimeSformer sqrt 0.11
    TimeSformer pos-scalar 0.22
    TimeSformer neg-scalar 0.11
    AST sqrt 0.16
    AST pos-scalar 0.11
    AST neg-scalar 0.22
    TimeSformer only None
    AST only None
    """
    dataset = Dataset.open(dataset)
    require_engine(engine)
    settings = settings or TrainSettings()
    chosen = seed_range(seeds, first_seed)
    unread = tuple(stream for stream in dataset.media if stream not in PAPER_STREAMS)
    paper = _with_paper_streams(dataset)
    clips = SameClips.load(paper, settings, chosen)
    with epochs_of(progress, "table 1", len(TABLE1) * len(chosen), settings) as shown:
        trained = clips.train(TABLE1, chosen, settings=settings, progress=shown, engine=engine, address=address)
    test = [row.test for row in trained if row.test]
    comparisons = [None, *against(test[0], test[1:])]
    rows = tuple(
        Table1Row(row.experiment, row.val, of_test, comparison, paper_results().get(row.experiment), row.heads)
        for row, of_test, comparison in zip(trained, test, comparisons, strict=True)
    )
    return Table1(
        dataset_name=dataset.name,
        is_demo=dataset.name == DEMO_NAME,
        is_paper_split=dataset.source.get("subset") == "paper"
        and all(stream.protocol == "notebook" for stream in paper.streams)
        and not dataset.source.get("missing"),
        unread=unread,
        classes=len(dataset.classes),
        clips=clips.counts,
        dropped=clips.dropped,
        ceiling=test[0].ceiling,
        seeds=chosen,
        settings=settings,
        rows=rows,
        resolvable_gap=resolvable_gap(test[0], test[1 : 1 + len(PAPER_SIX)], comparisons=len(TABLE1) - 1),
        provenance=clips.provenance,
    )


def _with_paper_streams(dataset: Dataset) -> Dataset:
    """Return the dataset as if it had the paper's streams alone; `ExperimentError` if it lacks one."""
    for stream in DEFAULT_STREAMS:
        if stream.name not in dataset.media:
            raise ExperimentError(
                f"table 1 is the paper's study of {' and '.join(PAPER_STREAMS)}, and {dataset.root} has no stream "
                f"'{stream.name}': add it with `alphafuse data streams --add {stream.name}={stream.encoder} --root "
                f"{dataset.root}`, or compare the streams that it has with `alphafuse compare --root {dataset.root}`"
            )
    return replace(dataset, streams=tuple(stream for stream in dataset.streams if stream.name in PAPER_STREAMS))
