"""The data of each section of the page, read from run folders, or the line shown instead.

Module `votes` computes what needs predictions (votes, confusions, gains per class). Test figures choose nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from alphafuse.data.audit import audit
from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import SPLITS
from alphafuse.data.sources.demo import DEMO_NAME
from alphafuse.data.splits import Ceiling
from alphafuse.data.streams import DEFAULT_NAMES, GIVEN, Stream
from alphafuse.errors import AlphafuseError
from alphafuse.extract.encoders.hub import COMPACT
from alphafuse.heads.studies.runs import DAMAGED, HEADS, Run, list_runs, resolve_run
from alphafuse.heads.studies.table1 import FIGURE3, paper_results
from alphafuse.report.contents import (
    Ablation,
    Absent,
    AlphaCurves,
    Bar,
    LearningCurves,
    LossCurves,
    Measure,
    Offer,
    Report,
    Table,
    Votes,
    Weights,
    ceiling_from_json,
    role_of,
)
from alphafuse.report.looks import looks_of, roles_of
from alphafuse.system.files import one_line

OUTLINE = {  # groups of `compare` in the ablation, and their names there
    "baseline": "fused",
    "alone": "alone",
    "some": "some streams",
    "fusion": "fused otherwise",
}

T = TypeVar("T")


def find_runs(dataset: Dataset, chosen: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the chosen runs, or all of the root's, and a line for each folder that was left out.

    Raises:
        ExperimentError: a chosen folder is not a run (without a choice, such a folder is left out, with a line).
    """
    if chosen:
        return [Run.open(resolve_run(folder, dataset.root), dataset.root) for folder in chosen], []
    return list_runs(dataset.root)


def first_command(root: Path) -> str:
    """Return a command that makes a first run with heads, in seconds."""
    return _command("weigh", root)


def collect(dataset: Dataset, runs: Sequence[Run], left_out: Sequence[str], votes: Votes | Absent) -> Report:
    """Collect the data of the page, with `votes` from `votes.ask_heads`; the explorer is still absent."""
    problems = list(left_out)
    tables = _of_kind(runs, "table1", lambda run: Table.from_json(run, run.figures()), problems)
    sweeps = _of_kind(runs, "sweep", lambda run: AlphaCurves.from_json(run.figures(), run), problems)
    offers = _of_kind(runs, "contribute", lambda run: Offer.from_json(run, run.figures()), problems)
    weights = _of_kind(runs, "weigh", lambda run: Weights.from_json(run, run.figures()), problems)
    drawn = [run for run in runs if run.config.get("curve", {}).get("preset") is None]  # MTEB's has no curve
    curves = _of_kind(drawn, "curve", lambda run: LearningCurves.from_json(run.figures(), run), problems)
    root = dataset.root
    has_papers_streams = set(DEFAULT_NAMES) <= set(dataset.media)
    no_table = Absent("The paper's Table 1", _command("table1", root)) if has_papers_streams else Absent("")
    losses = _losses(runs, votes, problems)
    ablation = _ablation(runs, tables, votes, problems, root)
    return Report(
        root=root,
        name=dataset.name,
        is_demo=dataset.name == DEMO_NAME,
        networks={one.name: _network(one) for one in dataset.streams},
        looks=looks_of(dataset.media),
        roles=roles_of(dataset.media),
        classes=len(dataset.classes),
        clips={split: len(dataset.manifest.of_split(split)) for split in SPLITS},
        facts=tuple(_facts(dataset)),
        extract_command=_embedding_command(dataset),
        audit=audit(dataset),
        runs=tuple(runs),
        left_out=tuple(dict.fromkeys(problems)),  # extended by the calls above
        offer=offers[0]
        if offers
        else Absent("What each stream adds, in all and to each class", _command("contribute", root)),
        weights=weights[0] if weights else Absent("What each stream should weigh", _command("weigh", root)),
        curve=curves[0] if curves else Absent("Whether more training clips would help", _command("curve", root)),
        table=tables[0] if tables else no_table,
        losses=losses,
        sweeps=tuple(sweeps),
        ablation=ablation,
        votes=votes,
        explorer=Absent(""),
    )


def _network(stream: Stream) -> str:
    """Return what a stream's encoder is called; a stand-in is named."""
    name = stream.encoder if stream.title == stream.name else stream.title
    return f"a small stand-in for {name}" if stream.encoder == COMPACT and name != COMPACT else name


def _embedding_command(dataset: Dataset) -> str:
    are_given = all(stream.encoder == GIVEN for stream in dataset.streams)
    command = "alphafuse data embeddings FILE.parquet" if are_given else "alphafuse extract --split all"
    return f"{command} --root {shlex.quote(str(dataset.root))}"


def _of_kind(runs: Sequence[Run], kind: str, read: Callable[[Run], T], problems: list[str]) -> list[T]:
    """Read the runs of a kind with `read`; leave out a damaged one, with a line in `problems`."""
    found = []
    for run in runs:
        if run.kind == kind:
            try:
                found.append(read(run))
            except DAMAGED as error:
                problems.append(f"{one_line(run.folder)} is damaged ({one_line(error)}): make it again: {run.command}")
    return found


def _command(name: str, root: Path) -> str:
    return f"alphafuse {name} --root {shlex.quote(str(root))}"


def _losses(runs: Sequence[Run], votes: Votes | Absent, problems: list[str]) -> LossCurves | Absent:
    """Return the curves of table 1's experiment 2 beside the paper's figure 3; without it, of the run of `votes`."""
    curves = _of_kind(runs, "table1", _figure3, problems)
    if not curves and isinstance(votes, Votes) and votes.fused.run.kind == "fit":
        curves = _of_kind([votes.fused.run], "fit", _own_losses, problems)
    return curves[0] if curves else Absent("")


def _figure3(run: Run) -> LossCurves:
    train, val = run.history(FIGURE3.name)
    paper = paper_results()[FIGURE3]
    title = f"Experiment {paper.experiment}: {FIGURE3.title}"
    return LossCurves(title, run.dataset_name, train, val, np.array(paper.train_loss), np.array(paper.val_loss), run)


def _own_losses(run: Run) -> LossCurves:
    train, val = run.history()
    return LossCurves(run.experiment.title, run.dataset_name, train, val, run=run)


def _ablation(
    runs: Sequence[Run], tables: Sequence[Table], votes: Votes | Absent, problems: list[str], root: Path
) -> Ablation | Absent:
    """Return bars of `compare`, else of table 1, and bars of single runs with other experiments."""
    bars: list[Bar] = []
    used: list[Run] = []
    ceilings = []
    note = ""
    for run, compared, ceiling, sentence in _of_kind(runs, "compare", _compared, problems)[:1]:
        bars += compared
        used.append(run)
        ceilings.append(ceiling)
        note = sentence
    for table in tables[:1] if not bars else ():
        chosen = [row for row in table.rows if not row.paper]
        bars += [Bar("table 1", row.title, row.role, row.test, is_plain=True) for row in chosen]
        used.append(table.run)
        ceilings.append(table.ceiling)
    titles, plain = {bar.title for bar in bars}, {bar.role for bar in bars if bar.is_plain}
    scores = {(bar.role, round(bar.test.mean, 9), bar.test.n) for bar in bars}
    for bar, run, ceiling in (found for kind in HEADS for found in _of_kind(runs, kind, _fit_bar, problems)):
        is_named = bar.title in titles or (bar.is_plain and bar.role in plain)
        if is_named and (bar.role, round(bar.test.mean, 9), bar.test.n) in scores:
            continue  # the same heads, trained again
        bars.append(replace(bar, title=f"{bar.title} (run {run.name})") if bar.title in titles else bar)
        used.append(run)
        ceilings.append(ceiling)
    if not bars:
        return Absent("All fusions beside each stream alone", _command("compare", root))
    return Ablation(tuple(bars), tuple(used), ceilings[0], note)


def _compared(run: Run) -> tuple[Run, list[Bar], Ceiling, str]:
    """Return the bars of a run of `compare`, their ceiling, and what it says to do."""
    content = run.figures()
    bars = [_compare_bar(row) for row in content["rows"] if row["group"] in OUTLINE]
    return run, bars, ceiling_from_json(content), str(content.get("answer", ""))


def _compare_bar(row: Mapping[str, Any]) -> Bar:
    return Bar(
        group=OUTLINE[row["group"]],
        title=str(row["title"]),
        role=role_of(row["experiment"]),
        test=Measure.from_json(row["test"], "top1"),
        is_plain=row["group"] != "fusion",
    )


def _fit_bar(run: Run) -> tuple[Bar, Run, Any]:
    metrics = run.figures()
    experiment = run.experiment
    title = experiment.title if run.name == experiment.name else f"{experiment.title} (run {run.name})"
    is_plain = (experiment.transform, experiment.fusion) == ("none", "concat") and not experiment.rates
    is_plain = is_plain and experiment.normalize in (None, "none")
    test = Measure.from_json(metrics["test"], "top1")
    bar = Bar("single runs", title, role_of(experiment), test, is_plain)
    return bar, run, ceiling_from_json(metrics["test"])


def _facts(dataset: Dataset) -> list[tuple[str, str]]:
    """Return facts about the embeddings and the root."""
    facts = [("dataset", dataset.name)]
    for name, value in dataset.source.items():
        if value not in (None, "", {}, []):
            facts.append((f"source: {name.replace('_', ' ')}", one_line(value)))
    for split in SPLITS:
        store = dataset.store(split)
        try:
            made, settings = store.provenance(), store.recipes()
        except (AlphafuseError, OSError) as error:
            facts.append((f"{split} embeddings", one_line(error)))
            continue
        if not settings:
            facts.append((f"{split} embeddings", "none yet"))
        elif split == "train" or not any(name == "protocol" for name, _ in facts):
            facts += _embedding_facts(made, settings)
    return facts


def _embedding_facts(made: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    facts = [("protocol", ", ".join(sorted({str(one.get("protocol", "unknown")) for one in settings.values()})))]
    encoders = made.get("encoders", {})
    for stream, one in settings.items():
        encoder = encoders.get(stream, {})
        parts = [str(encoder.get("name") or "encoder not recorded")]
        parts += [f"revision {encoder['revision']}"] if encoder.get("revision") else []
        parts += [f"{key.replace('_', ' ')} {one_line(value, 80)}" for key, value in one.items() if key != "protocol"]
        facts.append((stream, ", ".join(parts)))
    rest = {name: value for name, value in made.items() if name != "encoders"}
    return facts + [(f"extracted with: {name.replace('_', ' ')}", _flat(value)) for name, value in rest.items()]


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(one)}" for name, one in value.items())
    return one_line(value)
