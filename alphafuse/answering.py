"""`answer`: from a folder of clips to an answer, in one call that can be repeated.

    import -> audit -> extract -> weigh -> contribute -> compare -> report

Each step does what is missing. An existing root isn't imported again. A study is made again if it wasn't made from the
clips, labels, splits and recipes that the root has now, whoever made it; the report, if a run is newer than it. A study
that can't be made is left out with its reason, and the others go on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse.data.audit import audit
from alphafuse.data.dataset import FLOAT32_BYTES, Dataset
from alphafuse.data.dropping import dropped_clips
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.manifest import SPLITS
from alphafuse.data.sources.folder import import_folder
from alphafuse.data.sources.importing import find_files
from alphafuse.data.streams import Stream, in_order
from alphafuse.errors import AlphafuseError, DatasetError
from alphafuse.extract.decoding.signatures import sign_clips
from alphafuse.extract.encoders.families import known_hearing
from alphafuse.extract.pipeline import extract_embeddings
from alphafuse.extract.planning import ExtractPlan, plan_extraction
from alphafuse.extract.settings import ExtractSettings
from alphafuse.heads.model.config import BASELINE
from alphafuse.heads.studies.best_run import find_best
from alphafuse.heads.studies.compare import COMPARE_SEEDS, compare, count_compare_heads
from alphafuse.heads.studies.contribute import FOLDS, REFITS, contribute
from alphafuse.heads.studies.runs import DAMAGED, FIGURES, list_runs, made_from, run_folder
from alphafuse.heads.studies.same_clips import current_inputs
from alphafuse.heads.studies.weigh import weigh
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import train_heads
from alphafuse.report.contribute import write_contribution
from alphafuse.report.page.build import write_report
from alphafuse.report.studies import write_compare
from alphafuse.report.weigh import write_weigh
from alphafuse.system.files import read_json, to_path, write_json
from alphafuse.system.progress import NO_PROGRESS, Progress, duration
from alphafuse.system.remote import is_remote

STEPS = ("import", "audit", "extract", "weigh", "contribute", "compare", "report")
STUDIES = ("weigh", "contribute", "compare")
MEASURED_CLIPS = 2000  # clips on which the time of heads is measured; more cost in proportion
MEASURED_EPOCHS = 4
ONCE = 5.0  # seconds of a study beside its heads: intervals, tables, pictures
WEIGHTINGS = 30  # ridges of `weigh` per fold


@dataclass(frozen=True)
class Step:
    """A step of an answer, as it begins or ends.

    Attributes:
        name: one of `STEPS`, or "estimate".
        state: "running", "done", "kept" (nothing to do), or "left out" (it can't be done).
        line: what it found, or does, in a few words.
        seconds: time that it took.
    """

    name: str
    state: str
    line: str = ""
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """The step as a line: "3/7 extract: 40 clips embedded (42 s)"."""
        place = f"{STEPS.index(self.name) + 1}/{len(STEPS)} " if self.name in STEPS else ""
        state = "left out: " if self.state == "left out" else ""
        took = f" ({duration(self.seconds)})" if self.state == "done" and self.seconds >= 1 else ""
        return f"{place}{self.name}: {state}{self.line}{took}"


@dataclass(frozen=True)
class Answer:
    """Result of `answer`.

    Attributes:
        root: the root.
        sentences: what to do, as the studies say it: first `weigh`'s, then `compare`'s.
        steps: the steps, in order.
        report: the page; None if it can't be made.
        run: the run that `predict` uses; None if there is none.
        why: why it is that one.
        warnings: errors that the audit found: what is wrong with the splits or clips.
        expected: step -> expected seconds, estimated before the work; empty if nothing was to do.

    >>> from alphafuse import TrainSettings, answer
    >>> quick = TrainSettings(epochs=2, hidden=(16,))  # only for speed: use the defaults for meaningful figures
    >>> found = answer("demo", seeds=1, refits=0, training=quick, decode=False)
    >>> found.report.as_posix(), [step.name for step in found.steps if step.state == "left out"]
    ('demo/report.html', [])
    """

    root: Path
    sentences: tuple[str, ...]
    steps: tuple[Step, ...]
    report: Path | None
    run: Path | None
    why: str
    warnings: tuple[str, ...]
    expected: Mapping[str, float] = field(repr=False)

    def __repr__(self) -> str:
        left_out = [step.name for step in self.steps if step.state == "left out"]
        return f"Answer({self.sentences!r}, report={str(self.report)!r}" + (
            f", left out: {', '.join(left_out)})" if left_out else ")"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, json-able."""
        return {
            "root": str(self.root),
            "answer": list(self.sentences),
            "report": self.report and str(self.report),
            "run": self.run and str(self.run),
            "why": self.why or None,
            "warnings": list(self.warnings),
            "expected_seconds": {name: round(seconds, 1) for name, seconds in self.expected.items()},
            "steps": [
                {"name": step.name, "state": step.state, "line": step.line, "seconds": round(step.seconds, 1)}
                for step in self.steps
            ],
        }


def default_root(clips: str | Path) -> Path:
    """Return the root of `answer` when none is named: `clips` if it is a root, else NAME-answer in this folder.

    >>> from alphafuse.answering import default_root
    >>> default_root("films/clips").as_posix(), default_root("demo").as_posix()
    ('clips-answer', 'demo')
    """
    place = to_path(clips)
    if is_remote(place):
        return Path(f"{place.name or place.drive}-answer")
    return Path(place) if _is_root(clips) else Path(f"{place.resolve().name}-answer")


def _is_root(clips: str | Path) -> bool:
    place = to_path(clips)
    return not is_remote(place) and (place / "dataset.json").is_file()


def answer(
    clips: str | Path,
    root: str | Path | None = None,
    *,
    csv: str | Path | None = None,
    streams: Sequence[Stream] | None = None,
    stores: str | Path | None = None,
    labelled_by: str | None = None,
    seed: int | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    seeds: int = COMPARE_SEEDS,
    refits: int = REFITS,
    decode: bool = True,
    settings: ExtractSettings | None = None,
    training: TrainSettings | None = None,
    tell: Callable[[Step], object] = lambda step: None,
    progress: Progress = NO_PROGRESS,
) -> Answer:
    """Say what each stream of a folder of clips is worth, make heads that use them, and write the report.

    A repeated call does only what is missing, also after an interruption.

    Args:
        clips: folder with one folder per class, or with `csv`; or an existing root.
        root: folder to make; None = `default_root(clips)`.
        csv, streams, stores, labelled_by: as in `import_folder`. On an existing root, `streams` and `labelled_by`
            replace what it has.
        seed, val_fraction, test_fraction: as in `import_folder`; None = its defaults. Only for a new root.
        seeds: heads per row of `compare`.
        refits: permuted refits of `contribute`.
        decode: whether the audit decodes all clips, which finds copies and silent clips.
        settings: how to extract.
        training: training settings of `compare`.
        tell: called as each step begins and ends, and with an estimate of all of them.
        progress: callbacks of the work inside of the steps.

    Raises:
        DatasetError: the clips can't be imported; or the root exists and was made from other clips or options.
        AlphafuseError: the embeddings can't be made; see `extract_embeddings`.

    >>> from alphafuse import TrainSettings, answer
    >>> quick = TrainSettings(epochs=2, hidden=(16,))  # only for speed: use the defaults for meaningful figures
    >>> found = answer("demo", seeds=1, refits=0, training=quick, decode=False)
    >>> found.sentences[0]
    "Keep both streams and weigh them alike: 230 clips don't show that another weight is better..."
    """
    settings, training = settings or ExtractSettings(), training or TrainSettings()
    place = Path(root) if root is not None else default_root(clips)
    if _is_root(clips) and place.resolve() != Path(clips).resolve():
        raise DatasetError(f"{clips} is a root itself: leave --root {place} out")
    work = _Steps(tell)
    with work.step("import") as done:
        options = {"seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
        if (place / "dataset.json").is_file():
            dataset = _opened(place, clips, csv, options)
            if streams is not None and tuple(streams) != dataset.streams:
                dataset = dataset.with_streams(streams)
            if labelled_by is not None and labelled_by != dataset.labelled_by:
                dataset = dataset.with_labelled_by(labelled_by)
            done(_counts(dataset) + _unlisted(dataset), kept=True)
        else:
            given = {name: value for name, value in options.items() if value is not None}
            made = import_folder(
                clips,
                place,
                csv=csv,
                streams=streams,
                stores=stores,
                labelled_by=labelled_by,
                **given,  # type: ignore[arg-type]
            )
            dataset = made.dataset
            missing = f"; {len(made.missing)} listed clips have no file" if made.missing else ""
            done("; ".join([_counts(dataset) + missing, *made.notes]))
    splits = [split for split in SPLITS if dataset.manifest.of_split(split)]
    expected = _expect(dataset, splits, settings, training, seeds, refits, decode, tell)
    with work.step("audit", keep_going=True) as done:
        warnings = _audit(dataset, settings.workers if decode else None, work.inside(progress), done)
    with work.step("extract") as done:
        _extract(dataset, splits, settings, work.inside(progress), done)
    inputs = _inputs(dataset)
    studies: dict[str, Callable[[], Path]] = {
        "weigh": lambda: write_weigh(weigh(dataset, progress=work.inside(progress)), dataset),
        "contribute": lambda: write_contribution(
            contribute(dataset, refits=refits, progress=work.inside(progress)), dataset
        ),
        "compare": lambda: write_compare(
            compare(dataset, seeds=seeds, settings=training, progress=work.inside(progress)), dataset
        ),
    }
    for name, make in studies.items():
        with work.step(name, keep_going=True) as done:
            is_kept = bool(inputs) and made_from(dataset.root, name) == inputs
            folder = run_folder(dataset.root, name) if is_kept else make()
            done(f"{'of the same inputs' if is_kept else 'written'}: {folder}", kept=is_kept)
    page: Path | None = None
    with work.step("report", keep_going=True) as done:
        out = dataset.root / "report.html"
        is_kept = _is_newer_than_runs(out, dataset.root)
        if not is_kept:
            write_report(dataset, out, progress=lambda doing: tell(Step("report", "running", doing)))
        page = out
        done(f"{'of the same runs' if is_kept else 'written'}: {out}", kept=is_kept)
    run, why = None, ""
    with suppress(AlphafuseError):  # nothing could be trained: the steps say why
        best = find_best(dataset)
        run, why = best.run.folder, best.why
    return Answer(
        root=dataset.root,
        sentences=tuple(_sentences(dataset.root, [step for step in work.steps if step.state != "left out"])),
        steps=tuple(work.steps),
        report=page,
        run=run,
        why=why,
        warnings=warnings,
        expected=expected,
    )


class _Steps:
    """Runs steps, tells of them, and collects what became of them."""

    def __init__(self, tell: Callable[[Step], object]) -> None:
        self._tell = tell
        self.steps: list[Step] = []
        self._running = ""

    @contextmanager
    def step(self, name: str, *, keep_going: bool = False) -> Iterator[Callable[..., None]]:
        """Run a step; its block calls `done(line, kept=...)`. With `keep_going`, an `AlphafuseError` leaves it out."""
        started, self._running = time.monotonic(), name
        self._tell(Step(name, "running"))
        ended = Step(name, "done")

        def done(line: str, *, kept: bool = False) -> None:
            nonlocal ended
            ended = Step(name, "kept" if kept else "done", line)

        try:
            yield done
        except AlphafuseError as error:
            if not keep_going:
                raise
            ended = Step(name, "left out", str(error))
        ended = replace(ended, seconds=time.monotonic() - started)
        self.steps.append(ended)
        self._tell(ended)

    def inside(self, progress: Progress) -> Progress:
        """Return callbacks of the running step's rounds."""
        return _Inside(progress, f"{STEPS.index(self._running) + 1}/{len(STEPS)} {self._running}")


class _Inside(Progress):
    """Callbacks whose rounds are named after a step."""

    def __init__(self, outer: Progress, step: str) -> None:
        self._outer, self._step = outer, step

    def start(self, title: str, *, total: int, done: int = 0, unit: str = "clip") -> None:
        name = self._step if self._step.endswith(f" {title}") else f"{self._step}, {title}"
        self._outer.start(name, total=total, done=done, unit=unit)

    def advance(self, count: int = 1, **of_which: int) -> None:
        self._outer.advance(count, **of_which)

    def note(self, **figures: int) -> None:
        self._outer.note(**figures)

    def stop(self) -> None:
        self._outer.stop()


# import


def _opened(root: Path, clips: str | Path, csv: str | Path | None, options: Mapping[str, Any]) -> Dataset:
    """Open a root that exists, after checking that it was made from these clips and options."""
    dataset, place = Dataset.open(root), to_path(clips)
    if not _is_root(clips):
        same = str(dataset.clip_folder) == str(place) or (
            not is_remote(place)
            and not is_remote(dataset.clip_folder)
            and dataset.clip_folder.resolve() == place.resolve()
        )
        if not same:
            raise DatasetError(
                f"{root} was made from the clips in {dataset.clip_folder}: name another --root for {place}"
            )
        if csv is not None and dataset.source.get("csv") != Path(csv).name:
            raise DatasetError(f"{root} was made without {csv}: name another --root, or leave --csv out")
    for name, value in options.items():
        if value is not None and dataset.source.get(name) != value:
            raise DatasetError(
                f"{root} exists, and --{name.replace('_', '-')} is for a new one: leave it out, or name another --root"
            )
    return dataset


def _counts(dataset: Dataset) -> str:
    sizes = ", ".join(f"{split} {len(dataset.manifest.of_split(split))}" for split in SPLITS)
    classes = len(dataset.classes)
    return f"{len(dataset.manifest)} clips in {classes} class{'es' * (classes != 1)} ({sizes}) -> {dataset.root}"


def _unlisted(dataset: Dataset) -> str:
    new = unlisted_files(dataset)
    if not new:
        return ""
    return (
        f"; {new} more file{'s' * (new != 1)} in {dataset.clip_folder}: `alphafuse data folder {dataset.clip_folder} "
        f"--root {dataset.root}` adds them"
    )


def unlisted_files(dataset: Dataset) -> int:
    """Return how many files of its clips' folder a root neither lists nor dropped; 0 if a csv chose its clips."""
    if dataset.source.get("csv") or "folder" not in dataset.source or is_remote(dataset.clip_folder):
        return 0
    try:
        found = {path.as_posix() for path in find_files(dataset.clip_folder).clips.values()}
    except DatasetError:
        return 0
    known = [*dataset.manifest, *(clip for clip, _ in dropped_clips(dataset.root))]
    return len(found - {clip.path for clip in known})


# audit and extraction


def _audit(dataset: Dataset, workers: int | None, progress: Progress, done: Callable[..., None]) -> tuple[str, ...]:
    """Audit the root, or read what the audit of the same files said; return the errors. No workers: decode nothing."""
    path = dataset.root / "audit.json"
    listed = [[clip.clip_id, clip.path, clip.label, clip.split, clip.group] for clip in dataset.manifest]
    sizes = dataset.file_sizes(dataset.manifest) if dataset.needs_clips else {}
    inputs = hashlib.sha256(json.dumps([listed, sizes]).encode()).hexdigest()
    content: dict[str, Any] = {}
    if path.is_file():
        try:
            content = read_json(path)
        except DAMAGED:
            content = {}
    is_kept = content.get("inputs") == inputs and (workers is None or bool(content.get("content")) or not sizes)
    if not is_kept:
        signatures = hearing = None
        if sizes and workers is not None:
            signatures = sign_clips(dataset, workers=workers, progress=progress)
            hearing = known_hearing(dataset)
        content = {"inputs": inputs, **audit(dataset, signatures=signatures, hearing=hearing).to_json()}
        write_json(path, content)
    problems = content["problems"]
    counts = {severity: sum(one["severity"] == severity for one in problems) for severity in ("error", "warning")}
    found = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items() if count)
    more = f" (`alphafuse data audit --root {dataset.root}` explains)" if found else ""
    done(f"{found or 'nothing wrong'}{more}", kept=is_kept)
    return tuple(f"{one['message']} {one['mend']}".strip() for one in problems if one["severity"] == "error")


def _extract(
    dataset: Dataset, splits: Sequence[str], settings: ExtractSettings, progress: Progress, done: Callable[..., None]
) -> None:
    if not dataset.needs_clips:
        done("the embeddings were given", kept=True)
        return
    reports = extract_embeddings(dataset, splits, settings, progress=progress)
    new = sum(report.clips - report.already for report in reports)
    failed = len({failure.clip_id for report in reports for failure in report.failures})
    without = f", {failed} of them without a stream (`alphafuse store info` says why)" if failed else ""
    done(f"{new} clips embedded{without}" if new else "all clips are embedded", kept=not new)


# studies


def _inputs(dataset: Dataset) -> str:
    """Return the digest of what a study reads; "" if it can't read it: the studies then say why they are left out."""
    with suppress(AlphafuseError):
        return current_inputs(dataset)
    return ""


def _sentences(root: Path, steps: Sequence[Step]) -> Iterator[str]:
    """Yield the first sentence of weigh, and of compare."""
    for step in steps:
        if step.name in ("weigh", "compare"):
            try:
                found = read_json(run_folder(root, step.name) / FIGURES[step.name])
            except DAMAGED:
                continue
            said = found.get("answer") or found.get("verdict")
            if said:
                yield str(said)


def _is_newer_than_runs(page: Path, root: Path) -> bool:
    if not page.is_file():
        return False
    read = [run.folder / "config.json" for run in list_runs(root)[0]]
    read += [file for file in (root / "runs" / "pinned.json", root / "manifest.csv") if file.is_file()]
    return page.stat().st_mtime >= max(file.stat().st_mtime for file in read)


# the estimate


def _expect(
    dataset: Dataset,
    splits: Sequence[str],
    settings: ExtractSettings,
    training: TrainSettings,
    seeds: int,
    refits: int,
    decode: bool,
    tell: Callable[[Step], object],
) -> dict[str, float]:
    """Estimate the seconds of each step that is to do: measured on a few clips, and on a few epochs of a few heads."""
    missing = dataset.needs_clips and not all(_is_extracted(dataset, split) for split in splits)
    inputs = "" if missing else _inputs(dataset)
    to_do = [name for name in STUDIES if not inputs or made_from(dataset.root, name) != inputs]
    if not missing and not to_do:
        return {}
    tell(Step("estimate", "running", "measuring a few clips" if missing else ""))
    expected: dict[str, float] = {}
    dims: dict[str, int] = {}
    if missing:
        plans, rates = plan_extraction(dataset, splits, settings)
        dims = _planned_dims(plans)
        expected["extract"] = sum(plan.seconds or 0.0 for plan in plans)
        if rates and decode and not (dataset.root / "audit.json").is_file():
            expected["audit"] = len(dataset.manifest) * rates.decode_seconds / max(rates.workers, 1)
    dims = dims or dataset.store("train").dims()
    clips = len(dataset.manifest.of_split("train"))
    if dims and clips:
        tell(Step("estimate", "running", "measuring a few heads"))
        found = _study_seconds(clips, dims, max(len(dataset.classes), 2), training, seeds, refits)
        expected |= {name: found[name] for name in (*to_do, "report")}
    if not expected:
        return {}
    expected = {name: expected[name] for name in STEPS if name in expected}
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in expected.items())
    line = f"about {_minutes(sum(expected.values()))} in all ({parts})"
    tell(Step("estimate", "done", line))
    return expected


def _is_extracted(dataset: Dataset, split: str) -> bool:
    finished = dataset.store(split).finished(streams=tuple(dataset.media))
    return all(clip.clip_id in done for done in finished.values() for clip in dataset.manifest.of_split(split))


def _planned_dims(plans: Sequence[ExtractPlan]) -> dict[str, int]:
    """Return stream -> dimension, of the streams that some clip lacks."""
    found = {}
    for plan in plans:
        for name, size in plan.stream_bytes.items():
            lacking = plan.clips - plan.finished[name]
            if lacking:
                found[name] = size // (FLOAT32_BYTES * lacking)
    return found


def _study_seconds(
    clips: int, dims: Mapping[str, int], classes: int, training: TrainSettings, seeds: int, refits: int
) -> dict[str, float]:
    """Estimate the seconds of the studies from heads trained, and a ridge solved, on random numbers of this size."""
    sample = min(clips, MEASURED_CLIPS)
    rows = _random_rows(sample, dims, classes)
    config = BASELINE.head_config(rows, [str(i) for i in range(classes)], training)
    for epochs in (1, MEASURED_EPOCHS):  # the first call starts threads, and isn't counted
        started = time.monotonic()
        train_heads(rows, rows, [config], range(seeds), settings=replace(training, epochs=epochs))
        epoch = (time.monotonic() - started) / epochs / seeds * clips / sample
    matrix = np.concatenate([rows.features[name] for name in in_order(dims)], axis=1).astype(np.float64)
    started = time.monotonic()
    np.linalg.eigh(matrix.T @ matrix if matrix.shape[1] <= sample else matrix @ matrix.T)
    solve = time.monotonic() - started
    subsets = 2 ** len(dims) - 1
    return {
        "weigh": ONCE + solve * WEIGHTINGS * (FOLDS + 1),
        "contribute": ONCE + solve * (subsets + refits * len(dims)) * (FOLDS + 1),
        "compare": ONCE + epoch * training.total_epochs * count_compare_heads(dims, seeds),
        "report": ONCE,
    }


def _random_rows(clips: int, dims: Mapping[str, int], classes: int) -> Embeddings:
    rng = np.random.default_rng(0)
    names = tuple(str(i) for i in range(clips))
    return Embeddings(
        clip_ids=names,
        labels=tuple(str(i % classes) for i in range(clips)),
        groups=names,
        features={name: rng.standard_normal((clips, dim), dtype=np.float32) for name, dim in dims.items()},
        recipes={name: {} for name in dims},
    )


def _minutes(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' * (minutes != 1)}" if seconds < 5400 else duration(seconds)
