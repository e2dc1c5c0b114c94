"""Render a `contents.Report` as html: one self-contained file that needs no network and no other file.

A content security policy forbids the page to load anything, so that it is the same on every machine.
Labels, names and paths are untrusted text: the template escapes all of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from alphafuse.data.splits import Ceiling
from alphafuse.data.streams import title_of
from alphafuse.heads.studies.words import p_value
from alphafuse.report import figures as draw
from alphafuse.report.contents import Absent, ClassShare, Measure, Offer, Report, Role, Votes
from alphafuse.report.looks import Looks, capitalised, look_of
from alphafuse.report.studies import metric_title
from alphafuse.report.tables import percent, points, seeds_text
from alphafuse.version import __version__

from .sentences import (
    answer,
    between,
    classes_in_words,
    described,
    encoders_in_words,
    interval_methods,
    named,
    number,
    run_facts,
    telling,
    whose_heads,
)

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = {  # id -> its name in the contents, in the page's order
    "answer": "Answer",
    "contributions": "What each stream adds",
    "weights": "Weights",
    "classes": "Per class",
    "hardest": "Hardest clips",
    "confusion": "Confusions",
    "curve": "More clips",
    "explorer": "Try other weights",
    "ablation": "All fusions",
    "alpha": "Accuracy against alpha",
    "table1": "Table 1",
    "losses": "Loss curves",
    "audit": "The splits",
    "provenance": "Provenance",
    "more": "Not run yet",
}
FIRST_CLIPS = 6  # of the hardest: the others are folded
ENDS = 4  # classes shown at each end: those that a stream helps most, and those that it hurts


def draw_figures(report: Report, *, narrow: bool = False) -> dict[str, Figure]:
    """Plot the figures that have data, by name, in the page's order; `narrow`: only those with a layout for phones."""
    drawn: dict[str, Figure] = {}
    if not isinstance(report.weights, Absent) and report.weights.curve and report.weights.is_learned:
        drawn["weights"] = draw.weight_profile(report.weights.curve, narrow=narrow)
    if not isinstance(report.votes, Absent) and not narrow:
        drawn["confusion"] = draw.confusion(report.votes.confusion)
    if not isinstance(report.curve, Absent):
        drawn["curve"] = draw.learning_curves(report.curve, report.looks, narrow=narrow)
    if not isinstance(report.ablation, Absent):
        drawn["ablation"] = draw.ablation(report.ablation, report.looks, narrow=narrow)
    for position, curves in enumerate(report.sweeps, start=1):
        drawn["alpha" if len(report.sweeps) == 1 else f"alpha-{position}"] = draw.alpha_curves(
            curves, report.looks, narrow=narrow
        )
    if not isinstance(report.table, Absent):
        drawn["table1"] = draw.forest(report.table, report.looks, narrow=narrow)
    if not isinstance(report.losses, Absent):
        drawn["losses"] = draw.losses(report.losses, narrow=narrow)
    return drawn


@dataclass(frozen=True)
class Tile:
    """One of the accuracies at the top."""

    role: Role
    title: str
    note: str
    measure: Measure


def render_page(report: Report, drawn: Mapping[str, Figure]) -> str:
    """Return the page as html."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "code": _code,
        "capitalised": capitalised,
        "p": p_value,
        "look": lambda role: _style(report.looks, role),
        "side": lambda role: look_of(report.looks, role).alone,
        "short": lambda role: look_of(report.looks, role).short,
        "sense": lambda role: look_of(report.looks, role).sense,
        "signed": lambda bits: f"{round(bits, 1) + 0.0:+.1f}".replace("-", "\u2212"),
        "title_of": title_of,
        "between": between,
        "number": number,
        "points_between": lambda one: f"{points(one.low)} to {points(one.high)}" if one.has_interval else "-",
    }
    environment.tests["absent"] = lambda value: isinstance(value, Absent)

    def inline(figures: Mapping[str, Figure], suffix: str) -> dict[str, Markup]:
        words = {name: described(name, report) for name in figures}
        return {
            name: Markup(draw.inline_svg(figure, name + suffix, words[name], cells if name == "confusion" else ()))
            for name, figure in figures.items()
        }

    cells = []
    if isinstance(report.votes, Votes) and "confusion" in drawn:
        cells = draw.cell_names(report.votes.confusion, drawn["confusion"])
    tiles = _tiles(report)
    sweep_names = ["alpha" if len(report.sweeps) == 1 else f"alpha-{i}" for i in range(1, len(report.sweeps) + 1)]
    return environment.get_template("page.html.j2").render(
        report=report,
        root=shlex.quote(str(report.root)),
        sections=_sections(report),
        missing=missing(report),
        offer=report.offer,
        weights=report.weights,
        curve=report.curve,
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
        telling=telling(report),
        encoders=encoders_in_words(report),
        classes_in_words=classes_in_words,
        class_ends=class_ends,
        class_span=class_span,
        classes=_by_class(report.offer),
        first_clips=FIRST_CLIPS,
        svg=inline(drawn, ""),
        narrow_svg=inline(draw_figures(report, narrow=True), "-narrow"),
        run_facts=run_facts,
        metric_names=_metric_names(report.votes),
        most_cells=draw.MOST_CELLS,
        version=__version__,
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
    )


def missing(report: Report) -> list[Absent]:
    """Return what the page could show as well, one entry per command."""
    found = [report.offer, report.weights, report.votes, report.ablation, report.curve, report.table, report.explorer]
    absent = [one for one in found if isinstance(one, Absent) and one.line]
    if isinstance(report.votes, Votes):
        for stream in report.streams if len(report.streams) > 1 else ():
            if stream not in report.votes.alone:
                command = f"alphafuse fit --stream {stream} --root {shlex.quote(str(report.root))}"
                absent.append(Absent(f"What {title_of(stream)} alone predicts", command))
    if not report.sweeps:
        on = ",".join(report.streams)
        command = f"alphafuse sweep --on {on} --root {shlex.quote(str(report.root))}"
        absent.append(Absent("Accuracy against alpha", command))
    by_command: dict[str, Absent] = {}
    for one in absent:
        by_command.setdefault(one.command or one.line, one)
    return list(by_command.values())


def _sections(report: Report) -> dict[str, str]:
    """Return the sections that have data, id -> name."""
    data = {
        "contributions": report.offer,
        "weights": Absent("")
        if isinstance(report.weights, Absent) or not report.weights.is_learned
        else report.weights,
        "classes": Absent("") if isinstance(report.offer, Absent) or not report.offer.has_classes else report.offer,
        "hardest": report.votes,
        "confusion": report.votes,
        "curve": report.curve,
        "explorer": report.explorer,
        "ablation": report.ablation,
        "alpha": report.sweeps or Absent(""),
        "table1": report.table,
        "losses": report.losses,
        "more": missing(report) or Absent(""),
    }
    return {name: title for name, title in SECTIONS.items() if not isinstance(data.get(name), Absent)}


def class_ends(shares: Sequence[ClassShare]) -> dict[str, Sequence[ClassShare]]:
    """Return the classes that a stream helps most, and those that it hurts (else helps least); at most 4 of each."""
    helped, hurt = ([one for one in shares if sign * one.points.mean > 0] for sign in (1, -1))
    ends = {"helps most": helped[:ENDS], "hurts": hurt[-ENDS:], "helps least": [] if hurt else helped[ENDS:][-ENDS:]}
    return {title: some for title, some in ends.items() if some}


def class_span(offer: Offer) -> tuple[float, float]:
    """Return the ends of the bars of classes: the same for all streams, and 0 inside."""
    shown = [share.points for one in offer.streams for end in class_ends(one.by_class).values() for share in end]
    return min([0.0, *(one.low for one in shown)]), max([0.01, *(one.high for one in shown)])


def _by_class(offer: Offer | Absent) -> dict[str, list[ClassShare]]:
    """Return label -> what each stream adds, in the order of the streams; labels in alphabetical order."""
    found: dict[str, list[ClassShare]] = {}
    for one in () if isinstance(offer, Absent) else offer.streams:
        for share in sorted(one.by_class, key=lambda share: share.label):
            found.setdefault(share.label, []).append(share)
    return found


def _style(looks: Looks, role: Role) -> Markup:
    """Return the attribute that gives an element a role's colour, and as its mark the role's sign."""
    look = look_of(looks, role)
    return Markup("style=\"--own: var(--{}); --sign: '{}'\"").format(look.color, look.sign)


def _code(text: str) -> Markup:
    """Return text as html: `commands` in backticks as code, the rest escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # unpaired backtick: no markup
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if position % 2 else escape(part) for position, part in enumerate(parts)
    )


def _tiles(report: Report) -> list[Tile]:
    """Return the accuracies of the fused heads and each stream alone, from `votes` or else from table 1."""
    if isinstance(report.votes, Votes):
        voters = [(voter, voter.metrics["top1"]) for voter in report.votes.voters]
        return [
            Tile(
                voter.role,
                _tile_title(report, voter.role),
                f"{named(voter.title, voter.run)}, {_seeds(voter.seeds)}",
                top1,
            )
            for voter, top1 in voters
            if top1
        ]
    if isinstance(report.table, Absent):
        return []
    rows = [row for row in report.table.rows if not row.paper]
    note = seeds_text(report.table.run.seeds)
    return [Tile(row.role, _tile_title(report, row.role), f"{row.title}, {note}, run table1", row.test) for row in rows]


def _ceiling_of_tiles(report: Report) -> Ceiling:
    """Return the ceiling on the clips of the tiles."""
    if isinstance(report.votes, Votes):
        return report.votes.ceiling
    return report.audit.splits["test"].ceiling if isinstance(report.table, Absent) else report.table.ceiling


def _seeds(count: int) -> str:
    return seeds_text(range(count))


def _tile_title(report: Report, role: Role) -> str:
    return capitalised(look_of(report.looks, role).alone)


def _metric_names(votes: Votes | Absent) -> list[tuple[str, str, float, int]]:
    """Return (name, title, scale, digits) of the metrics in `votes`."""
    if isinstance(votes, Absent):
        return []
    return [(name, *metric_title(name)) for name in votes.fused.metrics]
