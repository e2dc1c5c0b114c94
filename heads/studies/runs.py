"""Run folders: the only module that writes and reads them.

    <root>/runs/<name>/
      config.json            inputs of the run: kind, experiments, classes, embeddings, encoders, settings, seeds
      history.csv            (experiment,) seed, epoch, train_loss, val_loss, val_accuracy
    fit adds
      metrics.json           per split: n, accuracy and loss with intervals, per seed, and the reachable ceiling
      predictions-val.csv    clip_id, group, label, seed, predicted, correct, loss
      predictions-test.csv
      head/                  the first seed's head
      heads/seed-<n>/        the heads of the other seeds
    table1 adds              table1.json, table1.md, figure3.png (losses of experiment 2 next to the paper's), and
      heads/<name>/          heads of untransformed and of each stream alone, each like a run of fit
    sweep adds               sweep.json, sweep.csv (a line per point), sweep.png; its config.json reproduces it
    compare adds             compare.json, compare.csv (a line per row), compare.md; no history. Heads of its main rows
      are runs like those of fit, whose config.json says "kept_by": "compare"
    weigh adds               weigh.json, and predictions and head/ like a run of fit; no history
    curve adds               curve.json, curve.csv (a line per size and heads), curve.md, curve.png
    contribute adds          contribute.json, contribute.csv (a line per class and stream), contribute.md; no history
    evaluate adds, to the run that it scores
      evaluation-<split>/    evaluation.json, classes.csv, confusion.csv

A run folder is written completely under a temporary name, and then replaces an older run of its name.
<root>/runs/pinned.json names the run that is used when none is named, if someone pinned one.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alphafuse.data.dataset import Dataset
from alphafuse.data.store.store import recipe_differences
from alphafuse.errors import AlphafuseError, DatasetError, ExperimentError, RecipeMismatchError
from alphafuse.heads.model.config import BASELINE, Experiment
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import TrainedHead
from alphafuse.system.files import iterate_csv, one_line, read_json, write_atomically, write_csv, write_json

from .probe import grid_json
from .reproduce import command_of
from .same_clips import EVALUATED, SplitResult, Trained, validation_rank

FIGURES = {
    "fit": "metrics.json",
    "table1": "table1.json",
    "sweep": "sweep.json",
    "compare": "compare.json",
    "curve": "curve.json",
    "weigh": "weigh.json",
    "contribute": "contribute.json",
}
HEADS = ("fit", "weigh")  # kinds of runs that hold an experiment's heads
WITHOUT_HEADS = {
    "sweep": "a sweep",
    "compare": "a comparison",
    "curve": "a learning curve",
    "contribute": "a run of contribute",
}
PICTURES = {"table1": "figure3.png", "sweep": "sweep.png", "curve": "curve.png", "weigh": "weigh.png"}
RESERVED_RUNS = {  # name -> the command, and kind, whose runs have it
    **{kind: kind for kind in ("table1", "compare", "weigh", "contribute", "curve")},
    "curve-mteb": "curve",
}
DAMAGED = (AlphafuseError, KeyError, TypeError, ValueError, IndexError, OSError)  # raised by reading a damaged run
TRAIN_FIRST = "train one with `alphafuse fit`, or name one that `alphafuse runs` lists"
PINNED = "pinned.json"  # in <root>/runs
DECIDING = ("experiment", "settings", "seeds", "classes", "embeddings", "inputs")  # parts of config.json: same heads

CsvRows = Iterable[Sequence[object]]


class SeededHead(Protocol):
    """A head to be saved, and its seed: what `save_heads` needs of a trained head."""

    @property
    def head(self) -> AlphaFusion: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


# writing


def run_folder(root: Path, name: str) -> Path:
    """Return the folder of a root's run."""
    return root / "runs" / name


def resolve_run(run: str | Path, root: str | Path | None) -> Path:
    """Return the folder of a run: `<root>/runs/<run>` if the root has a run of this name, else `run` as a path.

    >>> from alphafuse.heads.studies.runs import resolve_run
    >>> resolve_run("sqrt-ast", "demo").as_posix(), resolve_run("elsewhere/sqrt-ast", "demo").as_posix()
    ('demo/runs/sqrt-ast', 'elsewhere/sqrt-ast')
    """
    path = Path(run)
    if root is None or len(path.parts) != 1 or path.is_absolute():
        return path
    folder = run_folder(Path(root), str(path))
    return folder if folder.is_dir() else path


def check_run_name(name: str, kind: str = "") -> None:
    """Raise `ExperimentError` unless the name is valid as a folder name, and free for a run of this kind if given."""
    if not re.fullmatch(r"[\w][\w.+=@-]{0,99}", name):
        raise ExperimentError(
            f"'{name}' can't name a run: choose --run, up to 100 letters, digits, '-', '_' and '.', such as sqrt-ast"
        )
    owner = RESERVED_RUNS.get(name, kind)
    if kind and owner != kind:
        raise ExperimentError(f"the run name '{name}' is reserved for `alphafuse {owner}`: choose another --run")


def write_run(
    root: Path,
    name: str,
    *,
    kind: str,
    config: Mapping[str, Any],
    figures: Mapping[str, Any],
    history: Sequence[tuple[str, Sequence[TrainedHead]]] = (),
    predictions: Iterable[SplitResult] = (),
    heads: Mapping[str, Sequence[SeededHead]] | None = None,
    markdown: str | None = None,
    rows: CsvRows | None = None,
    picture: bytes | None = None,
) -> Path:
    """Write a run folder atomically, replacing an older one, and return it.

    Args:
        root: root of the dataset.
        name: name of the run.
        kind: a key of `FIGURES`.
        config: inputs of the run, for config.json.
        figures: every figure, json-able.
        history: (name, heads) of the experiments whose losses per epoch are kept; the name is empty if there is only
            one experiment.
        predictions: splits whose predictions per clip are kept; needs a single experiment.
        heads: name -> heads of the experiments whose heads are kept; an empty name puts them into the run folder
            itself.
        markdown, rows, picture: the result as a document, as csv rows with a header, as a PNG.

    Raises:
        ExperimentError: an invalid name, or a folder that can't be written.
    """
    check_run_name(name, kind)
    seeds, classes = config["seeds"], config["classes"]
    with replaced_run(root, name) as folder:
        write_json(folder / "config.json", {"kind": kind, **config})
        write_json(folder / FIGURES[kind], figures)
        if history:
            write_csv(folder / "history.csv", _history_rows(history))
        for result in predictions:
            write_csv(folder / f"predictions-{result.split}.csv", _prediction_rows(result, seeds, classes))
        for experiment, trained in (heads or {}).items():
            target = folder / "heads" / experiment if experiment else folder
            save_heads([(one.seed, one.head) for one in trained], target)
        if markdown is not None:
            write_atomically(folder / f"{kind}.md", markdown.encode())
        if rows is not None:
            write_csv(folder / f"{kind}.csv", rows)
        if picture is not None:
            write_atomically(folder / PICTURES[kind], picture)
    return run_folder(root, name)


def write_trained(
    root: Path,
    name: str,
    trained: Trained,
    *,
    settings: TrainSettings,
    provenance: Mapping[str, Any],
    clips: Mapping[str, int],
    dropped: Mapping[str, int],
    kept_by: str = "",
) -> Path:
    """Write an experiment's heads, scored on val and test, as a run of `fit`, and return its folder.

    Args:
        root, name: see `write_run`.
        trained: the heads.
        settings: training settings before a probe chose some of them.
        provenance, clips, dropped: see `SameClips`.
        kept_by: the study that trained them, if it wasn't `fit`.
    """
    assert trained.test is not None
    splits = dict(zip(EVALUATED, (trained.val, trained.test), strict=True))
    used = trained.probe.settings if trained.probe else settings
    return write_run(
        root,
        name,
        kind="fit",
        config={
            "experiment": asdict(trained.experiment),
            "head": trained.heads[0].head.config.to_json(),
            **provenance,
            "settings": used.to_json(),
            **({"probe": {"grid": grid_json(settings), **trained.probe.to_json()}} if trained.probe else {}),
            **({"kept_by": kept_by} if kept_by else {}),
            "clips": dict(clips),
            "dropped": dict(dropped),
        },
        figures={split: result.to_json() for split, result in splits.items()},
        history=[("", trained.heads)],
        predictions=splits.values(),
        heads={"": trained.heads},
    )


def keep_heads(
    root: Path,
    kept: Sequence[Trained],
    *,
    settings: TrainSettings,
    provenance: Mapping[str, Any],
    kept_by: str,
    **counts: Mapping[str, int],
) -> list[Path]:
    """Write heads of a study as runs of `fit`, named after their experiments; return the folders.

    Runs that the same study kept before are replaced; those that it doesn't keep any more are deleted, unless one is
    pinned. A run that something else wrote stays: with the same inputs it has the same heads and is returned;
    otherwise the study's heads get the name `<study>-<name>`.
    """
    folders = []
    for trained in kept:
        made = _plain_json({"experiment": asdict(trained.experiment), **provenance})
        made["settings"] = (trained.probe.settings if trained.probe else settings).to_json()
        name = trained.experiment.name
        if (existing := _config_of(run_folder(root, name))) and existing.get("kept_by") != kept_by:
            if all(existing.get(part) == _plain_json(made.get(part)) for part in DECIDING):
                folders.append(run_folder(root, name))
                continue
            name = f"{kept_by}-{name}"
        folders.append(
            write_trained(root, name, trained, settings=settings, provenance=provenance, kept_by=kept_by, **counts)
        )
    for folder in (root / "runs").glob("*/"):
        old = _config_of(folder).get("kept_by") == kept_by
        if old and folder not in folders and folder.name != pinned_name(root):
            shutil.rmtree(folder, ignore_errors=True)
    return folders


def made_from(root: Path, name: str) -> str | None:
    """Return the digest of a run's inputs, see `same_clips.inputs_of`; None if there is no such run, or no digest."""
    return _config_of(run_folder(root, name)).get("inputs")


def _plain_json(value: Any) -> Any:
    """Return a value as it reads after it was written as json: tuples are lists."""
    return json.loads(json.dumps(value))


def _config_of(folder: Path) -> dict[str, Any]:
    """Return a run's config.json; {"kind": None} if the folder holds something else; {} if there is no folder."""
    if not folder.is_dir():
        return {}
    try:
        return dict(read_json(folder / "config.json"))
    except DAMAGED:
        return {"kind": None}


def write_evaluation_folder(
    run: Path, split: str, *, figures: Mapping[str, Any], classes: CsvRows, confusion: CsvRows
) -> Path:
    """Write the result of `evaluate` into the run's own folder; return `<run>/evaluation-<split>/`."""
    folder = run / f"evaluation-{split}"
    write_csv(folder / "classes.csv", classes)
    write_csv(folder / "confusion.csv", confusion)
    write_json(folder / "evaluation.json", figures)
    return folder


@contextmanager
def replaced_run(root: Path, name: str) -> Iterator[Path]:
    """Yield a temporary folder; rename it to `<root>/runs/<name>` if the block succeeds, delete it otherwise.

    An older run stays until then. Folders can't be exchanged atomically, so between two renames neither run exists; an
    interruption between them restores the older one.

    Raises:
        ExperimentError: an invalid name, or a folder that can't be written.
    """
    check_run_name(name)
    target = run_folder(root, name)
    temporary = run_folder(root, f".{name}.{uuid.uuid4().hex[:8]}.partial")
    replaced = temporary.with_suffix(".old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
    except OSError as error:
        raise ExperimentError(f"can't write the run {target}: {error.strerror or error}") from error
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        for folder in (temporary, replaced):
            shutil.rmtree(folder, ignore_errors=True)


def save_heads(heads: Iterable[tuple[int, AlphaFusion]], folder: Path) -> None:
    """Write an experiment's (seed, head) pairs: the first to head/, the others to heads/seed-<n>/."""
    for position, (seed, head) in enumerate(heads):
        head.save_pretrained(folder / "heads" / f"seed-{seed}" if position else folder / "head")


def pin_run(root: Path, name: str | None) -> None:
    """Make a run the one that is used when none is named; None = none is pinned.

    Raises:
        ExperimentError: the root has no such run, or it has no heads.
    """
    path = root / "runs" / PINNED
    if name is None:
        path.unlink(missing_ok=True)
        return
    read_run(run_folder(root, name))
    write_json(path, {"run": name})


def pinned_name(root: Path) -> str | None:
    """Return the name of the pinned run; None if none is pinned."""
    path = root / "runs" / PINNED
    try:
        return str(read_json(path)["run"]) if path.is_file() else None
    except DAMAGED:
        raise ExperimentError(f"{path} is damaged: pin a run again with `alphafuse runs --pin NAME`") from None


def _history_rows(history: Sequence[tuple[str, Sequence[TrainedHead]]]) -> Iterator[tuple[object, ...]]:
    """Yield a header, then a row per experiment, seed and epoch; epochs count from 1."""
    named = ("experiment",) if history[0][0] else ()
    yield (*named, "seed", "epoch", "train_loss", "val_loss", "val_accuracy")
    for name, heads in history:
        for one in heads:
            columns = (one.history.train_loss, one.history.val_loss, one.history.val_accuracy)
            for epoch, values in enumerate(zip(*columns, strict=True), start=1):
                yield (*([name] if named else []), one.seed, epoch, *(float(value) for value in values))


def _prediction_rows(result: SplitResult, seeds: Sequence[int], classes: Sequence[str]) -> Iterator[tuple[object, ...]]:
    yield ("clip_id", "group", "label", "seed", "predicted", "correct", "loss")
    for index, seed in enumerate(seeds):
        for i, clip_id in enumerate(result.clip_ids):
            predicted = classes[result.scores.predicted[index, i]]
            correct, loss = int(result.scores.top1[index, i]), float(result.scores.loss[index, i])
            yield (clip_id, result.groups[i], result.labels[i], seed, predicted, correct, loss)


# reading


@dataclass(frozen=True)
class Run:
    """A run folder of any kind; its files are read on request.

    Attributes:
        folder: the run folder.
        kind: a key of `FIGURES`.
        config: content of config.json.
        command: the command that reproduces the run.
    """

    folder: Path
    kind: str
    config: Mapping[str, Any]
    command: str

    def __repr__(self) -> str:
        return f"Run({self.kind}, {str(self.folder)!r})"

    @classmethod
    def open(cls, folder: Path, root: Path) -> Run:
        """Open a run folder; `root` is the dataset's root, as written in the run's command.

        Raises:
            ExperimentError: the folder holds no run, or config.json is damaged.
        """
        if not (folder / "config.json").is_file():
            raise ExperimentError(
                f"no run in {one_line(folder)} (it has no config.json): name folders that fit, table1, sweep, "
                "compare, curve, weigh or contribute wrote, <root>/runs/<name>"
            )
        try:
            config = read_json(folder / "config.json")
            if config.get("kind") not in FIGURES:
                raise ValueError(f"its kind is {one_line(config.get('kind'), 40)!r}, not one of {', '.join(FIGURES)}")
            for name in ("seeds", "settings", "embeddings", "dataset"):
                config[name]  # KeyError if config.json lacks it
            return cls(folder, config["kind"], config, command_of(config, folder.name, root))
        except DAMAGED as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
            raise ExperimentError(f"{one_line(folder)} can't be used as a run: {reason}: make it again") from None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def written(self) -> str:
        """Time at which config.json was written, in UTC: "2026-11-24 23:31"."""
        seconds = (self.folder / "config.json").stat().st_mtime
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the run's heads."""
        return tuple(self.config["seeds"])

    @property
    def experiment(self) -> Experiment:
        """The experiment of a run with heads; of table 1, the untransformed one."""
        if self.kind == "table1":
            fields = self.config["experiments"][0]
            return Experiment(**{name: fields[name] for name in Experiment.__dataclass_fields__ if name in fields})
        return Experiment(**self.config["experiment"])

    @property
    def has_heads(self) -> bool:
        """Whether `read_run` can read its heads: fit, weigh, and the untransformed ones of table 1."""
        return self.kind in HEADS or (self.kind == "table1" and self.heads_folder(BASELINE.name).is_dir())

    @property
    def dataset_name(self) -> str:
        """Name of the dataset that the run was trained on."""
        return str(self.config["dataset"]["name"])

    def figures(self) -> dict[str, Any]:
        """Return every figure of the run; raise one of `DAMAGED` if the file can't be read."""
        return read_json(self.folder / FIGURES[self.kind])

    def history(self, experiment: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Return the losses per epoch, see `read_history`."""
        return read_history(self.folder / "history.csv", experiment)

    def correct(self, split: str) -> tuple[list[str], list[str], np.ndarray]:
        """Read which clips of "val" or "test" the heads get right.

        Returns:
            clip_ids, their source videos, and (seeds, clips) bool.

        Raises:
            OSError, ValueError, IndexError: the run has no such predictions, or they are damaged.
        """
        rows = iterate_csv(self.folder / f"predictions-{split}.csv")
        header = next(rows)[1]
        columns = [header.index(name) for name in ("clip_id", "group", "seed", "correct")]
        by_seed: dict[str, list[bool]] = {}
        clip_ids: list[str] = []
        groups: list[str] = []
        for _, row in rows:
            clip_id, group, seed, correct = (row[column] for column in columns)
            if len(by_seed.setdefault(seed, [])) == len(clip_ids):
                clip_ids.append(clip_id)
                groups.append(group)
            by_seed[seed].append(correct == "1")
        return clip_ids, groups, np.array(list(by_seed.values()))

    def heads_folder(self, experiment: str = "") -> Path:
        """Return the folder of the heads; in a run of table1, of the row named `experiment`."""
        return self.folder / "heads" / experiment if self.kind == "table1" else self.folder

    def scores(self) -> Mapping[str, Any]:
        """Return "val" and "test" -> figures of the heads; of table 1, of the untransformed ones."""
        figures = self.figures()
        return figures if self.kind in HEADS else figures["rows"][0]

    def validation_rank(self) -> tuple[float, float]:
        """Sort key of runs with heads, best first."""
        val = self.scores()["val"]
        return validation_rank(float(val["top1"]["mean"]), float(val["loss"]["mean"]))


def list_runs(root: Path) -> tuple[list[Run], list[str]]:
    """Return a root's runs, sorted by name, and an error line for each folder that is damaged or no run."""
    runs, left_out = [], []
    for folder in sorted((root / "runs").glob("*/")):
        if folder.name.startswith("."):  # being written
            continue
        try:
            runs.append(Run.open(folder, root))
        except ExperimentError as error:
            left_out.append(str(error))
    return runs, left_out


def read_history(path: Path, experiment: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Read train and validation loss, each (seeds, epochs), from a history.csv.

    `experiment` selects one of several experiments. Rows of seeds that stopped early are padded with NaN.
    """
    rows = iterate_csv(path)
    header = next(rows, (0, []))[1]  # an empty file has no columns
    columns = [header.index(name) for name in ("seed", "epoch", "train_loss", "val_loss")]
    name_column = header.index("experiment") if experiment else -1
    losses: dict[int, list[tuple[float, float]]] = {}
    for _, row in rows:
        if name_column < 0 or row[name_column] == experiment:
            seed, _, train, val = (row[column] for column in columns)
            losses.setdefault(int(seed), []).append((float(train), float(val)))
    if not losses:
        raise ValueError(f"{path.name} has no line of {experiment or 'any epoch'}")
    curves = list(losses.values())
    return padded([[train for train, _ in one] for one in curves]), padded([[val for _, val in one] for one in curves])


def padded(curves: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    """Return curves of different lengths as one array (seeds, epochs) float64, padded with NaN.

    >>> padded([[1.0, 0.5], [2.0]])
    array([[1. , 0.5],
           [2. , nan]])
    """
    matrix = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(matrix, curves, strict=True):
        row[: len(curve)] = curve
    return matrix


def load_heads(folder: Path) -> list[AlphaFusion]:
    """Load all heads that `save_heads` wrote to a folder, in the order of their seeds."""
    others = sorted((Path(folder) / "heads").glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
    return [AlphaFusion.from_pretrained(path) for path in (Path(folder), *others)]


def read_sweep_config(path: Path) -> dict[str, Any]:
    """Read the keyword arguments of `sweep` from a sweep's config.json; `ExperimentError` if it isn't one."""
    try:
        arguments = dict(read_json(path)["sweep"])
        return {**arguments, "settings": TrainSettings.from_json(arguments["settings"])}
    except (DatasetError, KeyError, TypeError, ValueError) as error:
        raise ExperimentError(f"{path} is not the config.json of a sweep ({error}): name one under runs/") from None


@dataclass(frozen=True)
class TrainedRun:
    """A run with heads, as returned by `read_run`.

    Attributes:
        folder: the run folder.
        experiment: the experiment of its heads.
        heads: one head per seed, on the CPU, in eval mode.
        config: content of config.json: classes, clips, dataset, settings, seeds, versions, ...
        metrics: "val" and "test" -> content of metrics.json: n, top1, loss, ... with intervals, and the ceiling.

    >>> from alphafuse import read_run
    >>> run = read_run("demo/runs/sqrt-ast")
    >>> len(run.classes), run.streams, run.embeddings["ast"]["protocol"]
    (16, ('timesformer', 'ast'), 'standard')
    """

    folder: Path
    experiment: Experiment
    heads: tuple[AlphaFusion, ...]
    config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]

    def __repr__(self) -> str:
        return f"TrainedRun({self.experiment.title}, {len(self.heads)} heads, folder={str(self.folder)!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the logits."""
        return self.heads[0].config.classes

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams that the heads read."""
        return self.heads[0].config.streams

    @property
    def embeddings(self) -> Mapping[str, Mapping[str, Any]]:
        """stream -> recipe of the embeddings that the heads were trained on, as in a store."""
        return self.config["embeddings"]

    @property
    def encoders(self) -> Mapping[str, Mapping[str, Any]]:
        """stream -> {"name", "revision", "medium", "options"} of its encoder; empty if the store didn't record it."""
        return self.config.get("encoders", {})

    def write(self, folder: str | Path) -> None:
        """Write the run to another folder, for `read_run`; config.json is written last."""
        folder = Path(folder)
        save_heads(zip(self.config["seeds"], self.heads, strict=True), folder)
        write_json(folder / "metrics.json", self.metrics)
        write_json(folder / "config.json", self.config)


def require_recipe(
    run: Path, stream: str, made: Mapping[str, Any], other: Mapping[str, Any], *, than: str, way_out: str = ""
) -> None:
    """Raise `RecipeMismatchError` if a run's heads were trained with another recipe; `than` describes the other one."""
    difference = recipe_differences(made, other)
    if difference:
        raise RecipeMismatchError(f"the run {run} was trained on another {stream} {difference} than {than}{way_out}")


def read_run(folder: Path | str) -> TrainedRun:
    """Read a run that `fit` or `weigh` wrote, or the untransformed heads of one that `table1` wrote.

    Raises:
        ExperimentError: the folder holds no run, or a run without heads (a sweep, a comparison), or a damaged file.

    >>> from alphafuse import read_run
    >>> run = read_run("demo/runs/sqrt-ast")
    >>> run
    TrainedRun(AST sqrt, 1 heads, folder='demo/runs/sqrt-ast')
    >>> run.metrics["test"]["n"], run.encoders["ast"]["name"]
    (192, 'compact')
    """
    folder = Path(folder)
    if (folder / "dataset.json").is_file():
        raise ExperimentError(
            f"{folder} is a dataset root, not a run: name one of its runs, such as {folder}/runs/NAME"
        )
    if not folder.is_dir():
        raise ExperimentError(f"no such run: {folder}: {TRAIN_FIRST}")
    if not (folder / "config.json").is_file():
        raise ExperimentError(f"no trained run in {folder} (it has no config.json): {TRAIN_FIRST}")
    try:
        config = read_json(folder / "config.json")
        kind = str(config.get("kind"))
        if kind not in (*HEADS, "table1"):
            what = WITHOUT_HEADS.get(kind, "something else")
            raise ExperimentError(f"{folder} is {what}, which keeps no heads: {TRAIN_FIRST}")
        run = Run(folder, kind, config, "")
        metrics, heads = run.figures(), load_heads(run.heads_folder(BASELINE.name))
        if kind == "table1":  # present the untransformed heads as a run of `fit`
            row = metrics["rows"][0]
            experiment = {name: row["experiment"][name] for name in Experiment.__dataclass_fields__}
            shared = {name: value for name, value in config.items() if name != "experiments"}
            config = {**shared, "experiment": experiment}
            metrics = row
        config = {**config, "kind": "fit"}  # what an exported copy is
        metrics = {split: metrics[split] for split in EVALUATED}
        absent = [stream for stream in heads[0].config.streams if stream not in config["embeddings"]]
        if absent or len(config["seeds"]) != len(heads):
            raise ExperimentError(f"config.json and the heads in {folder} don't belong together: train it again")
        return TrainedRun(folder, Experiment(**config["experiment"]), tuple(heads), config, metrics)
    except DatasetError as error:
        raise ExperimentError(f"the run in {folder} can't be read: {error}: {TRAIN_FIRST}") from None
    except (KeyError, TypeError) as error:
        raise ExperimentError(f"config.json in {folder} is not a run's ({error!r}): {TRAIN_FIRST}") from None


def dataset_of(run: Path) -> Dataset:
    """Open the dataset whose runs/ folder contains a run."""
    if (run / "dataset.json").is_file():
        raise ExperimentError(f"{run} is a dataset root, not a run: name one of its runs, such as {run}/runs/NAME")
    root = run.resolve().parent.parent
    if not (root / "dataset.json").is_file():
        raise ExperimentError(f"{run} is not inside a dataset root (<root>/runs/<name>): name the root with --root")
    return Dataset.open(root)
