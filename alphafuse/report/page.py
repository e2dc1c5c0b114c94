"""One self-contained page of a dataset's runs: no network, no other file.

    root -> runs, stores -> `collect`, `votes` -> `contents.Report` -> figures, page/page.html.j2 -> report.html

The page forbids itself to load anything (a content security policy), so that it shows the same wherever it is sent.
Labels, names and paths are anybody's text: the template escapes all of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

import alphafuse
from alphafuse.data.dataset import Dataset
from alphafuse.data.power import LEVEL
from alphafuse.data.splits import Ceiling, reachable_ceiling
from alphafuse.errors import AlphafuseError, ExperimentError
from alphafuse.heads.model.config import TITLES
from alphafuse.heads.studies.evaluate import trained_labels
from alphafuse.heads.studies.experiments import Experiment, load_embeddings_of
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.system.files import one_line, write_atomically

from . import figures as draw
from .collect import collect, find_runs
from .contents import ROLES, Absent, Measure, Report, Role, Run, Votes
from .evaluation import NAMES as METRIC_NAMES
from .text import p_phrase, p_value, percent, points, seeds_text
from .thumbnails import thumbnails
from .votes import Side, ask_heads, explorable_sides, find_sides

PAGE = Path(__file__).parent / "page"
EXPLORER_EDGE = 112  # pixels of the explorer's pictures: up to 400 of them, about 3 kB each
SIDES: Mapping[Role, str] = {"fused": "fused", "timesformer": "sight alone", "ast": "sound alone"}

Progress = Callable[[str], object]


def write_report(
    dataset: Dataset,
    out: str | Path,
    *,
    runs: Sequence[str | Path] = (),
    figures: str | Path | None = None,
    progress: Progress = lambda doing: None,
) -> Path:
    """Write one self-contained html page of a root's runs.

    It shows what is there: table 1 beside the paper's, loss curves, accuracy against alpha, what each modality
    contributes in all and per class, what is taken for what, the hardest clips, the splits' ceiling, and where every
    number comes from. What is missing is named with the command that adds it.

    Args:
        dataset: the root; its test split should be extracted, else sections that ask heads are missing.
        out: the html file; it appears whole or not at all.
        runs: run folders to show; by default all of the root's. Votes, confusions and gains are those of the first that
            has fused heads; by default of the run of `fit` of highest validation accuracy, or else of table 1's.
        figures: a folder for each figure as .png and .svg.
        progress: called with what is being done, a few words, now and then.

    Returns:
        `out`.

    Raises:
        ExperimentError: a folder among `runs` that is no run, or nothing to report on.
        AlphafuseError: `out` or `figures` can't be written.

    >>> from alphafuse import Dataset, write_report
    >>> write_report(Dataset.open("demo"), "report.html").name
    'report.html'
    """
    report, drawn = build_report(dataset, runs=[Path(run) for run in runs], progress=progress)
    progress("writing the page")
    page = render_page(report, drawn)
    if figures is not None:
        draw.write_figures(drawn, Path(figures))
    write_atomically(Path(out), page.encode())
    return Path(out)


def build_report(
    dataset: Dataset, *, runs: Sequence[Path] = (), progress: Progress = lambda doing: None
) -> tuple[Report, dict[str, Figure]]:
    """What the page shows, and its figures by name; see `write_report`."""
    found, left_out = find_runs(dataset, runs)
    if not found:
        raise ExperimentError(
            f"no run in {dataset.root / 'runs'} to report on: make one with `alphafuse table1 --root {dataset.root}`"
        )
    sides = find_sides(found, chosen=bool(runs), problems=left_out)
    votes = _votes(dataset, sides, progress)
    progress("reading the runs")
    report = replace(collect(dataset, found, left_out, votes), is_chosen=bool(runs))
    if isinstance(votes, Votes):
        candidates = explorable_sides(found, sides["fused"])
        report = replace(report, explorer=_explorer(dataset, candidates, votes, progress))
    progress("drawing")
    return report, draw_figures(report)


def _votes(dataset: Dataset, sides: Mapping[Role, Side], progress: Progress) -> Votes | Absent:
    root = shlex.quote(str(dataset.root))
    if "fused" not in sides:
        return Absent("None of the runs here has fused heads", f"alphafuse table1 --root {root}")
    try:
        votes = ask_heads(dataset, sides, progress=progress)
    except AlphafuseError as error:
        return Absent(f"The heads can't be asked: {one_line(error)}")
    paths = {clip.clip_id: dataset.path_of(clip) for clip in dataset.manifest.of_split("test")}
    progress("taking pictures from the hardest clips")
    pictures = thumbnails({clip.clip_id: paths[clip.clip_id] for clip in votes.hardest})
    hardest = tuple(replace(clip, thumbnail=pictures.get(clip.clip_id, "")) for clip in votes.hardest)
    return replace(votes, hardest=hardest)


def _explorer(dataset: Dataset, sides: Sequence[Side], votes: Votes, progress: Progress) -> str | Absent:
    """The explorer of the first of these heads that can be explored."""
    from .explorer import explored_clip_ids, explorer_html

    reason = ""
    embeddings = load_embeddings_of(dataset, "test")  # they could be read before: the heads at the top were asked
    paths = {clip.clip_id: dataset.path_of(clip) for clip in dataset.manifest.of_split("test")}
    for side in sides:
        try:
            chosen = set(explored_clip_ids(side.heads, embeddings))
            progress("taking pictures for the explorer")
            pictures = thumbnails({one: path for one, path in paths.items() if one in chosen}, edge=EXPLORER_EDGE)
            labels = [label for one, label in zip(embeddings.clip_ids, embeddings.labels, strict=True) if one in chosen]
            return explorer_html(
                side.heads,
                embeddings,
                ceiling=reachable_ceiling(trained_labels(dataset, side.heads[0].config), labels),
                title=_named(side.title, side.run),
                note=f"The fused heads at the top of this page are others: {reason}." if reason else "",
                thumbnails=pictures,
            )
        except AlphafuseError as error:
            reason = reason or one_line(error)
    return Absent(f"No explorer: {reason}", f"alphafuse fit --root {shlex.quote(str(dataset.root))}")


def _named(title: str, run: Run) -> str:
    says_all = run.name == title.lower().replace(" ", "-")
    return title if says_all else f"{title}, run {run.name}"


def draw_figures(report: Report, *, narrow: bool = False) -> dict[str, Figure]:
    """The figures that there is data for, by name, in the page's order; as `narrow` as a phone, those that can be."""
    drawn: dict[str, Figure] = {}
    if not isinstance(report.table, Absent):
        drawn["table1"] = draw.forest(report.table, narrow=narrow)
    if not isinstance(report.losses, Absent):
        drawn["losses"] = draw.losses(report.losses, narrow=narrow)
    for number, curves in enumerate(report.sweeps, start=1):
        drawn["alpha" if len(report.sweeps) == 1 else f"alpha-{number}"] = draw.alpha_curves(curves, narrow=narrow)
    if not isinstance(report.ablation, Absent):
        drawn["ablation"] = draw.ablation(report.ablation, narrow=narrow)
    if not isinstance(report.votes, Absent):
        if report.votes.gains:
            drawn["class-gains"] = draw.class_gains(report.votes.gains, narrow=narrow)
        if not narrow:
            drawn["confusion"] = draw.confusion(report.votes.confusion)
    return drawn


# html


@dataclass(frozen=True)
class Tile:
    """One of the three figures at the top."""

    role: Role
    title: str
    note: str
    measure: Measure


def render_page(report: Report, drawn: Mapping[str, Figure]) -> str:
    """The page as html."""
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "code": _code,
        "capitalised": lambda text: text[:1].upper() + text[1:],
        "p": p_value,
        "between": _between,
        "number": _number,
        "points_between": lambda one: f"{points(one.low)} to {points(one.high)}" if one.has_interval else "-",
    }
    environment.tests["absent"] = lambda value: isinstance(value, Absent)

    def inline(figures: Mapping[str, Figure], suffix: str) -> dict[str, Markup]:
        described = {name: _described(name, report) for name in figures}
        return {
            name: Markup(draw.inline_svg(figure, name + suffix, described[name])) for name, figure in figures.items()
        }

    tiles = _tiles(report)
    sweep_names = ["alpha" if len(report.sweeps) == 1 else f"alpha-{i}" for i in range(1, len(report.sweeps) + 1)]
    return environment.get_template("page.html.j2").render(
        report=report,
        root=shlex.quote(str(report.root)),
        table=report.table,
        losses=report.losses,
        sweeps=list(zip(sweep_names, report.sweeps, strict=True)),
        ablation=report.ablation,
        votes=report.votes,
        audit=report.audit,
        ceiling=_ceiling_of_tiles(report),
        all_ceiling=report.audit.splits["test"].ceiling,
        whose_heads=whose_heads(report),
        interval_methods=interval_methods,
        tile_measures=[(tile.title.lower(), tile.measure) for tile in tiles],
        table_measures=[] if isinstance(report.table, Absent) else [(row.title, row.test) for row in report.table.rows],
        explorer=report.explorer if isinstance(report.explorer, Absent) else Markup(report.explorer),
        tiles=tiles,
        answer=answer(report),
        sweep_verdicts={name: _sweep_verdicts(curves) for name, curves in zip(sweep_names, report.sweeps, strict=True)},
        svg=inline(drawn, ""),
        narrow_svg=inline(draw_figures(report, narrow=True), "-narrow"),
        run_facts=run_facts,
        metric_names=_metric_names(report.votes),
        shown_gains=draw.shown_gains,
        most_cells=draw.MOST_CELLS,
        seeds_text=seeds_text,
        all_seeds=_all_seeds(report),
        ROLES=ROLES,
        TITLES=TITLES,
        SIDES=SIDES,
        version=alphafuse.__version__,
        css=Markup((PAGE / "page.css").read_text(encoding="utf-8")),
        js=Markup((PAGE / "page.js").read_text(encoding="utf-8")),
    )


def _between(measure: Measure, scale: float = 100.0, digits: int = 1) -> str:
    if not measure.has_interval:
        return "-"
    return f"{_number(measure.low, scale, digits)} to {_number(measure.high, scale, digits)}"


def _number(value: float, scale: float, digits: int) -> str:
    return f"{scale * value:.{digits}f}".replace("-", "\u2212")  # a true minus


def interval_methods(measures: Sequence[tuple[str, Measure]]) -> str:
    """How the intervals of these figures were made, by name where they were made in several ways.

    >>> one = Measure(0.5, 0.4, 0.6, "bootstrap over source videos", 20)
    >>> interval_methods([("fused", one), ("sight alone", Measure(0.0, 0.0, 0.2, "Wilson", 20))])
    'bootstrap over source videos (fused), Wilson (sight alone)'
    """
    names: dict[str, list[str]] = {}
    for name, measure in measures:
        names.setdefault(measure.method, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{method} ({', '.join(of)})" for method, of in names.items())


def _code(text: str) -> Markup:
    """Text with `commands` in backticks as code; the rest is escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one backtick too many: it is no markup
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if position % 2 else escape(part) for position, part in enumerate(parts)
    )


def _described(name: str, report: Report) -> str:
    """What a figure shows, for those who can't see it: its main figures in words."""
    if name == "table1" and not isinstance(report.table, Absent):
        rows = ", ".join(f"{row.title} {percent(row.test.mean)}%" for row in report.table.rows)
        return f"Test accuracies of table 1 with 95% intervals, beside the paper's: {rows}"
    if name == "ablation" and not isinstance(report.ablation, Absent):
        bars = ", ".join(f"{bar.title} {percent(bar.test.mean)}%" for bar in report.ablation.bars)
        return f"Test accuracies with 95% intervals: {bars}"
    if name.startswith("alpha"):
        curves = report.sweeps[int(name.partition("-")[2] or 1) - 1]
        chosen = ", ".join(f"{TITLES[on]} {found.alpha:g}" for on, found in curves.chosen.items())
        return f"Validation accuracy and loss against alpha with 95% bands; chosen: {chosen}"
    if name == "losses" and not isinstance(report.losses, Absent):
        return f"Training and validation loss per epoch: {report.losses.title}"
    if name == "class-gains":
        return "Recall of each class, fused minus TimeSformer only, with 95% intervals; the table below has the figures"
    return "Confusion matrix of the fused heads on test clips; the table below lists the most frequent mistakes"


def _tiles(report: Report) -> list[Tile]:
    """Fused and each modality alone: as the asked heads say, or else table 1's rows."""
    if isinstance(report.votes, Votes):
        voters = [(voter, voter.metrics["top1"]) for voter in report.votes.voters]
        return [
            Tile(voter.role, _tile_title(voter.role), f"{_named(voter.title, voter.run)}, {_seeds(voter.seeds)}", top1)
            for voter, top1 in voters
            if top1
        ]
    if isinstance(report.table, Absent):
        return []
    rows = [row for row in report.table.rows if not row.paper]
    note = seeds_text(report.table.run.seeds)
    return [Tile(row.role, _tile_title(row.role), f"{row.title}, {note}, run table1", row.test) for row in rows]


def _ceiling_of_tiles(report: Report) -> Ceiling:
    """Of the clips that the tiles are about."""
    if isinstance(report.votes, Votes):
        return report.votes.ceiling
    return report.audit.splits["test"].ceiling if isinstance(report.table, Absent) else report.table.ceiling


def whose_heads(report: Report) -> str:
    """Why these fused heads are the ones that speak, and on which clips that was decided."""
    if isinstance(report.votes, Absent):
        return ""
    run = report.votes.fused.run
    if run.kind == "table1":
        return f"The fused heads are the untransformed ones of run {run.name}; nothing was chosen."
    rivals = [
        one for one in report.runs if one.kind == "fit" and len(Experiment(**one.config["experiment"]).modalities) > 1
    ]
    if len(rivals) == 1:
        return f"The fused heads are those of run {run.name}, the only run of fused heads by itself."
    if report.is_chosen:
        return f"The fused heads are those of run {run.name}, the first that was named for this page."
    among = f"{len(rivals)} runs" if not report.left_out else "those that can be used"
    return f"The fused heads are those of run {run.name}: of {among} the best on validation clips."


def _seeds(count: int) -> str:
    return seeds_text(range(count))


def _tile_title(role: Role) -> str:
    return {"fused": "Fused", "timesformer": "Sight alone", "ast": "Sound alone"}[role]


def answer(report: Report) -> list[str]:
    """The report in a paragraph, as sentences: what each modality contributes, the transforms, the ceiling."""
    sentences = []
    votes, table = report.votes, report.table
    if isinstance(votes, Votes):
        top1 = votes.fused.metrics["top1"]
        assert top1 is not None
        sentences.append(
            f"On {votes.clips} test clips of {votes.source_videos} source videos, the fused heads are right on "
            f"{percent(top1.mean)}% ({_between(top1)})."
        )
        for one in votes.contributions:
            added, base = ("sound", "sight") if one.over == "timesformer" else ("sight", "sound")
            sentences.append(
                f"Adding {added} to {base} alone {_changes(one.gain.mean)} {abs(100 * one.gain.mean):.1f} points "
                f"({points(one.gain.low)} to {points(one.gain.high)}, {p_phrase(one.p_value)})"
                + ("." if one.p_value < 1 - LEVEL else ": on these clips it can't be told from nothing.")
            )
    elif not isinstance(table, Absent):
        base_row = table.rows[0]
        sentences.append(
            f"On {base_row.test.n} test clips, the untransformed fused heads are right on "
            f"{percent(base_row.test.mean)}% ({_between(base_row.test)})."
        )
        for row in table.rows:
            if row.role != "fused" and row.difference and row.p_value is not None:
                ends = f"{points(row.difference.low)} to {points(row.difference.high)}"
                gap = f"{points(row.difference.mean)} points ({ends}, {p_phrase(row.p_value)})"
                sentences.append(f"{row.title}: {percent(row.test.mean)}%, {gap}.")
    elif not isinstance(report.ablation, Absent):
        sentences += [
            f"{bar.title}: right on {percent(bar.test.mean)}% ({_between(bar.test)}) of {bar.test.n} test clips."
            for bar in report.ablation.bars
            if bar.is_plain
        ]
    if not isinstance(table, Absent):
        sentences.append(f"Of the paper's six transforms: {table.verdict[0].lower()}{table.verdict[1:]}")
    ceiling = report.audit.splits["test"].ceiling
    unseen = ceiling.clips - ceiling.reachable
    sentences.append(
        f"The ceiling is {percent(ceiling.accuracy)}%: "
        + (
            f"{unseen} of {ceiling.clips} test clips have a label that never occurs in training, so no head can be "
            "right on them."
            if unseen
            else "every test clip's label occurs in training."
        )
    )
    if report.is_demo:
        sentences.append(
            "This is the generated demo, whose difficulty is chosen: its accuracies say nothing about real clips."
        )
    return sentences


def _changes(gain: float) -> str:
    return "gains" if gain >= 0 else "loses"


def _sweep_verdicts(curves: Any) -> list[str]:
    """What test clips say of the alphas that validation chose."""
    sentences = []
    for on, found in curves.chosen.items():
        verdict = "differs from" if found.p_value < 1 - LEVEL else "can't be told from"
        ends = f"{points(found.difference.low)} to {points(found.difference.high)}"
        sentences.append(
            f"Alpha {found.alpha:g} of {TITLES[on]}, chosen on validation, {verdict} the untransformed heads on test "
            f"clips: {points(found.difference.mean)} points ({ends}, {p_phrase(found.p_value)})."
        )
    if not curves.ceilings["val"].reachable:
        sentences.append(
            "No validation clip has a label that occurs in training, so validation accuracy is 0 at every alpha: "
            "the alphas were chosen by validation loss alone, which says little here."
        )
    return sentences


def _metric_names(votes: Votes | Absent) -> list[tuple[str, str, float, int]]:
    """(name, title, scale, digits) of the metrics that the heads were scored by."""
    if isinstance(votes, Absent):
        return []
    rows = []
    for name in votes.fused.metrics:
        title = METRIC_NAMES.get(name, f"{name.replace('top', 'top-')} accuracy (%)")
        scale, digits = (100.0, 1) if title.endswith("(%)") else (1.0, 3)
        rows.append((name, title, scale, digits))
    return rows


def _all_seeds(report: Report) -> str:
    """How many seeds the runs have: "5", or "1 to 5"."""
    counts = sorted({len(run.seeds) for run in report.runs})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def run_facts(run: Run) -> list[tuple[str, str]]:
    """Where a run's numbers come from, for its list."""
    config = run.config
    settings, usual = dict(config["settings"]), TrainSettings().to_json()
    changed = [f"{name} {_text(value)}" for name, value in settings.items() if usual.get(name) != value]
    same = [f"{name} {_text(value)}" for name, value in settings.items() if usual.get(name) == value]
    facts = [("run", str(run.folder)), ("written", f"{run.written} UTC")]
    if run.kind == "fit":
        facts.append(("experiment", Experiment(**config["experiment"]).title))
    facts.append(("seeds", ", ".join(str(seed) for seed in run.seeds)))
    if "clips" in config:
        facts.append(("clips", ", ".join(f"{split} {count}" for split, count in config["clips"].items())))
    if any(config.get("dropped", {}).values()):
        dropped = ", ".join(f"{split} {count}" for split, count in config["dropped"].items())
        facts.append(("left out", f"{dropped} (they lack a modality)"))
    facts.append(("settings", "; ".join(filter(None, [", ".join(changed), f"the paper's: {', '.join(same)}"]))))
    for modality, made in config["embeddings"].items():
        encoder = config.get("encoders", {}).get(modality, {})
        parts = [str(encoder.get("name") or "encoder not recorded")]
        parts += [f"revision {encoder['revision']}"] if encoder.get("revision") else []
        parts += [f"protocol {made.get('protocol', 'unknown')}"]
        parts += [f"weights sha256 {made['weights_sha256']}"] if made.get("weights_sha256") else []
        facts.append((TITLES.get(modality, modality), ", ".join(parts)))
    facts.append(("versions", ", ".join(f"{name} {value}" for name, value in config.get("versions", {}).items())))
    return facts


def _text(value: object) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
