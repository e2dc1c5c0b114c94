"""The report's figures: data (`contents`) -> matplotlib figures, as files and as SVG inside a page.

All use the colours of `PALETTE`, the page's light theme. `inline_svg` replaces these colours with the page's css
variables, so that one drawing serves the dark and the light theme.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alphafuse.data.splits import Ceiling
from alphafuse.data.streams import title_of
from alphafuse.heads.model.config import title_of_streams
from alphafuse.system.files import one_line, write_atomically

from .contents import (
    Ablation,
    AlphaCurves,
    Bar,
    Confusion,
    LearningCurves,
    LossCurves,
    Measure,
    Table,
    TableRow,
    WeightCurve,
)
from .looks import COMBINED, Looks, look_of
from .tables import percent

PALETTE = {  # as in page/page.css, light: blue, orange and green of Okabe and Ito (2008), darkened for text
    "ink": "#1c2127",
    "muted": "#5c6670",
    "paper": "#fbfaf7",
    "line": "#dcd9d2",
    "sight": "#0868ac",
    "sight-2": "#16275c",
    "sound": "#b84a00",
    "sound-2": "#5a1c00",
    "fused": "#00755e",
}
WIDTH = 7.4  # inches; 710 px in the page
NARROW = 3.55  # inches; 341 px, for phones: labels are above their rows, panels one below the other
DPI = 200  # of PNG files
LONGEST_LABEL = 44  # characters
NARROW_ROW, NARROW_LABEL, ABOVE = 0.47, 38, 0.42  # inches; characters; rows between a label and its row
PAPER_CEILING = (
    4 / 18
)  # of the paper's test clips, these have a label that occurs in its training clips (docs/paper.md)
MOST_CELLS = 40  # up to this many classes, the matrix shows labels and figures
MOST_NAMED = 2000  # cells of the matrix with a name to hover over, the fullest first: 120 bytes each

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.edgecolor": PALETTE["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": PALETTE["line"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
    "text.color": PALETTE["ink"],
    "text.parse_math": False,  # a label may contain "$"
    "xtick.color": PALETTE["line"],
    "ytick.color": PALETTE["line"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["ink"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0.0,
    "svg.hashsalt": "alphafuse",  # the same drawing gives the same bytes
}

_SVG = "{http://www.w3.org/2000/svg}"

P = ParamSpec("P")


@contextmanager
def _style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Use our settings of matplotlib instead of the caller's; ignore warnings about characters missing in a font."""
    settings: Any = {**_STYLE, **(more or {})}
    with warnings.catch_warnings(), rc_context(settings):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # a second layout would shift elements slightly
        return figure

    return in_style


def shortened(label: str, most: int = LONGEST_LABEL) -> str:
    """Shorten a label, and drop characters that XML can't hold."""
    return re.sub("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", one_line(label, most))


@_styled
def forest(table: Table, looks: Looks, *, narrow: bool = False) -> Figure:
    """Plot table 1: accuracies with intervals, the paper's beside them, and both ceilings."""
    rows = table.rows
    figure, axes = _rows_figure(len(rows), row_inches=0.4, narrow=narrow)
    for place, row in enumerate(rows):
        _interval(axes, place - (0.13 if row.paper else 0), row.test, looks, row.role, is_full=row.paper is None)
        if row.paper:
            _papers(axes, place + 0.2, row)
    labels = [f"{row.paper.experiment}  {row.title}" if row.paper else row.title for row in rows]
    _row_labels(axes, labels, narrow=narrow)
    _values(axes, [row.test for row in rows], narrow=narrow)
    base = 100 * rows[0].test.mean
    axes.axvline(base, color=PALETTE["fused"], linewidth=0.8, alpha=0.5, zorder=0)
    if not table.is_paper_split:
        axes.axvline(100 * PAPER_CEILING, color=PALETTE["muted"], linewidth=0.9, linestyle=":", zorder=0)
        apart = table.ceiling.accuracy - PAPER_CEILING
        beside = "center" if abs(apart) > 0.45 else "right" if apart > 0 else "left"
        _name_above(axes, "paper's ceiling 22.2", 100 * PAPER_CEILING, beside)
    _ceiling(axes, table.ceiling, is_leftmost=table.ceiling.accuracy < PAPER_CEILING and not table.is_paper_split)
    axes.plot([], [], "o-", color=PALETTE["fused"], markersize=5, label="this dataset, with 95% interval")
    axes.plot(
        [],
        [],
        "D-",
        color=PALETTE["muted"],
        mfc="none",
        markersize=4,
        linewidth=1,
        label="paper's notebook, of 18 clips",
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13 * 10 / len(rows)), ncols=1 if narrow else 2)
    axes.set_xlabel("top-1 accuracy on test clips (%)", color=PALETTE["muted"])
    return figure


def _papers(axes: Axes, place: float, row: TableRow) -> None:
    assert row.paper is not None
    measure = row.paper.measure
    ends = [100 * measure.low, 100 * measure.high]
    axes.plot(ends, [place, place], color=PALETTE["muted"], linewidth=0.9, alpha=0.65)
    axes.plot([100 * measure.mean], [place], "D", color=PALETTE["muted"], mfc="none", markersize=4, mew=1.1)


@_styled
def ablation(found: Ablation, looks: Looks, *, narrow: bool = False) -> Figure:
    """Plot bars of accuracy: fused, each stream alone, and other fusions."""
    groups = list(dict.fromkeys(bar.group for bar in found.bars))
    places, place = [], 0.0
    for position, bar in enumerate(found.bars):
        place += 1.0 if not position or bar.group == found.bars[position - 1].group else 1.55
        places.append(place)
    figure, axes = _rows_figure(places[-1], row_inches=0.34, narrow=narrow)
    for place, bar in zip(places, found.bars, strict=True):
        color = PALETTE[look_of(looks, bar.role).color]
        _bar(axes, place, bar, color, height=0.4 if narrow else 0.62)
    axes.set_ylim(places[-1] + 0.7, places[0] - 0.8)
    _row_labels(axes, [bar.title for bar in found.bars], places, narrow=narrow)
    _values(axes, [bar.test for bar in found.bars], places, narrow=narrow)
    _ceiling(axes, found.ceiling)
    for group in groups if len(groups) > 1 else ():
        first = next(place for place, bar in zip(places, found.bars, strict=True) if bar.group == group)
        if first != places[0]:
            axes.axhline(first - 0.78, color=PALETTE["line"], linewidth=0.8)
    axes.set_xlabel("top-1 accuracy on test clips (%)", color=PALETTE["muted"])
    return figure


def _bar(axes: Axes, place: float, bar: Bar, color: str, *, height: float) -> None:
    axes.barh(place, 100 * bar.test.mean, height=height, color=color, alpha=0.6 if bar.is_plain else 0.3, linewidth=0)
    _whisker(axes, place, bar.test, color=PALETTE["ink"])


@_styled
def losses(found: LossCurves, *, narrow: bool = False) -> Figure:
    """Plot train and validation loss per epoch: ours (mean, range over seeds) beside the paper's on one scale."""
    has_paper = found.paper_train is not None and found.paper_val is not None
    count = 2 if has_paper else 1
    if narrow:
        figure = Figure(figsize=(NARROW, 2.5 * count), layout="constrained")
        panels = figure.subplots(count, 1, sharey=True, sharex=True, squeeze=False)[:, 0]
    else:
        figure = Figure(figsize=(WIDTH if has_paper else 0.6 * WIDTH, 3.3), layout="constrained")
        panels = figure.subplots(1, count, sharey=True, sharex=True, squeeze=False)[0]
    seeds = len(found.train)
    name = f"{found.name}, {f'{seeds} seeds: mean and range' if seeds > 1 else 'one seed'}"
    _loss_panel(panels[0], found.train, found.val, name, PALETTE["fused"])
    if found.paper_train is not None and found.paper_val is not None:
        paper = "paper, figure 3 (one seed)"
        _loss_panel(panels[1], found.paper_train[None], found.paper_val[None], paper, PALETTE["muted"])
    panels[-1].set_xlabel("epoch")
    for panel in panels if narrow else panels[:1]:
        panel.set_ylabel("cross entropy (nats)")
    for panel in panels if not narrow else ():
        panel.set_xlabel("epoch")
    panels[0].set_ylim(bottom=0)
    return figure


def _loss_panel(axes: Axes, train: np.ndarray, val: np.ndarray, title: str, color: str) -> None:
    for name, curves, style in (("train", train, "-"), ("validation", val, "--")):
        has_values = ~np.isnan(curves).all(axis=0)
        epochs = np.arange(1, curves.shape[1] + 1)[has_values]
        shown = curves[:, has_values]
        axes.plot(epochs, np.nanmean(shown, axis=0), style, color=color, label=name)
        if len(curves) > 1:
            low, high = np.nanmin(shown, axis=0), np.nanmax(shown, axis=0)
            axes.fill_between(epochs, low, high, color=color, alpha=0.18, linewidth=0)
    axes.set_title(shortened(title))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y")
    axes.legend()


@_styled
def alpha_curves(found: AlphaCurves, looks: Looks, *, narrow: bool = False) -> Figure:
    """Plot validation accuracy and loss against alpha with 95% bands, the chosen alphas' test scores and ceilings."""
    figure = Figure(figsize=(NARROW, 6.6) if narrow else (WIDTH, 3.7), layout="constrained")
    accuracy, loss = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
    several = dict(zip((on for on in found.curves if on not in looks), itertools.cycle(COMBINED), strict=False))
    for axes, name, scale in ((accuracy, "top1", 100.0), (loss, "loss", 1.0)):
        for on, points in found.curves.items():
            look = look_of(looks, on)
            color, marker = PALETTE[look.color], several.get(on, look.marker)
            alphas = [point.alpha for point in points]
            measures: list[Measure] = [getattr(point, name) for point in points]
            means = [scale * one.mean for one in measures]
            axes.plot(
                alphas, means, color=color, marker=marker, markersize=3.5, label=f"{title_of_streams(on)}, validation"
            )
            ends = ([scale * one.low for one in measures], [scale * one.high for one in measures])
            axes.fill_between(alphas, *ends, color=color, alpha=0.14, linewidth=0)
            chosen = found.chosen[on]
            test: Measure = getattr(chosen, name)
            axes.axvline(chosen.alpha, color=color, linewidth=0.8, alpha=0.55, zorder=0)
            errors = [[scale * max(test.mean - test.low, 0)], [scale * max(test.high - test.mean, 0)]]
            axes.errorbar(
                [chosen.alpha],
                [scale * test.mean],
                yerr=errors,
                fmt="D",
                color=color,
                mfc=PALETTE["paper"],
                markersize=5.5,
                elinewidth=1,
                capsize=2.5,
                label=f"{title_of_streams(on)} {chosen.alpha:g} (chosen), test",
            )
        for split, split_title, style in (("val", "validation", ":"), ("test", "test", (0, (6, 2, 1, 2, 1, 2)))):
            base = (
                scale * found.untransformed[split][name].mean
            )  # curves are compared with validation, diamonds with test
            axes.axhline(
                base, color=PALETTE["ink"], linewidth=1, linestyle=style, label=f"untransformed, {split_title}"
            )
        axes.set_xlabel(f"alpha ({found.transform})")
        axes.grid(axis="y")
    ceiling = 100 * found.ceilings["val"].accuracy
    accuracy.axhline(
        ceiling, color=PALETTE["muted"], linewidth=1, linestyle="--", label=f"ceiling, validation {ceiling:.1f}"
    )
    test_ceiling = 100 * found.ceilings["test"].accuracy
    if abs(test_ceiling - ceiling) > 0.05:
        accuracy.axhline(
            test_ceiling, color=PALETTE["muted"], linewidth=1, linestyle="-.", label=f"ceiling, test {test_ceiling:.1f}"
        )
    accuracy.set_ylabel("top-1 accuracy (%)")
    accuracy.set_ylim(top=min(103.0, max(accuracy.get_ylim()[1], ceiling + 3)))
    loss.set_ylabel("cross entropy (nats)")
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if narrow else 3)
    return figure


@_styled
def weight_profile(found: WeightCurve, *, narrow: bool = False) -> Figure:
    """Plot the error of two streams against the ratio of their weights, with the interval and equal weights."""
    figure = Figure(figsize=(NARROW if narrow else WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    ratios, excess, inside = found.ratios, found.excess, found.ratios[found.inside]
    axes.axvspan(inside.min(), inside.max(), color=PALETTE["fused"], alpha=0.14, linewidth=0, label="95% interval")
    axes.plot(ratios, excess, color=PALETTE["fused"], label="out-of-fold error")
    axes.axvline(1, color=PALETTE["muted"], linewidth=1, linestyle="--", label="equal weights")
    axes.plot(ratios[found.chosen], excess[found.chosen], "D", color=PALETTE["fused"], label="recommended")
    axes.set_xscale("log", base=2)
    axes.set_xticks([2.0**i for i in range(-4, 5)], ["1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8", "16"])
    axes.set_xlabel(f"weight of {title_of(found.last)} relative to {title_of(found.first)}")
    axes.set_ylabel("squared error above the least (%)")
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])  # room for the marker
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=2 if narrow else 4)
    return figure


@_styled
def learning_curves(found: LearningCurves, looks: Looks, *, narrow: bool = False) -> Figure:
    """Plot test accuracy against training clips per class with 95% bands, and the ceiling; each step right doubles."""
    figure = Figure(figsize=(NARROW, 3.6) if narrow else (0.8 * WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    for role, points in found.curves.items():
        look = look_of(looks, role)
        color, sizes = PALETTE[look.color], [size for size, _ in points]
        means = [100 * measure.mean for _, measure in points]
        axes.plot(sizes, means, color=color, marker=look.marker, markersize=4, label=look.alone)
        ends = ([100 * measure.low for _, measure in points], [100 * measure.high for _, measure in points])
        if len(points) > 1:
            axes.fill_between(sizes, *ends, color=color, alpha=0.14, linewidth=0)
        else:
            axes.plot([sizes[0]] * 2, [ends[0][0], ends[1][0]], color=color, linewidth=1.1)
    ceiling = 100 * found.ceiling.accuracy
    axes.axhline(ceiling, color=PALETTE["muted"], linewidth=1, linestyle="--", label=f"ceiling {ceiling:.1f}")
    sizes = sorted({size for points in found.curves.values() for size, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(_apart(sizes), [f"{size:.3g}" for size in _apart(sizes)])
    axes.minorticks_off()
    axes.set_ylim(0, min(103.0, max(axes.get_ylim()[1], ceiling + 3)))
    axes.set_xlabel("training clips per class")
    axes.set_ylabel("top-1 accuracy on test clips (%)")
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=1 if narrow else 4)
    return figure


def _apart(sizes: Sequence[float]) -> list[float]:
    """Return the sizes whose names have room on a scale of octaves; always the largest."""
    kept: list[float] = []
    for size in reversed(sizes):
        if not kept or kept[-1] >= size * 2**0.4:
            kept.append(size)
    return kept[::-1]


@_styled
def confusion(found: Confusion) -> Figure:
    """Plot the confusion matrix of the fused heads: rows are true labels; darker means a larger share of the row."""
    count = len(found.labels)
    is_written = count <= MOST_CELLS
    side = max(0.27 * count, 2.2) if is_written else 5.4
    labels = [shortened(label) for label in found.labels]
    margin = 0.068 * max(map(len, labels)) + 0.75 if is_written else 0.9
    width, height = side + margin + 0.15, side + 0.75
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((margin / width, 0.12 / height, side / width, side / height))
    picture = np.zeros((count, count, 4))
    picture[..., :3] = to_rgb(PALETTE["fused"])
    strongest, power = (0.62, 1 / 2) if is_written else (1.0, 1 / 3)
    picture[..., 3] = strongest * found.shares**power  # transparent, to suit the dark and the light theme
    axes.imshow(picture, interpolation="nearest", aspect="equal")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.spines[["top", "right"]].set_visible(True)
    axes.tick_params(length=0)
    if is_written:
        numbers = [str(place) for place in range(1, count + 1)]
        axes.set_xticks(range(count), numbers, fontsize=7.5)
        axes.set_yticks(range(count), [f"{label}  {number}" for label, number in zip(labels, numbers, strict=True)])
        for i, j in zip(*np.nonzero(found.shares >= 0.005), strict=True):
            axes.text(j, i, f"{100 * found.shares[i, j]:.0f}", ha="center", va="center", fontsize=7)
        axes.set_xlabel("predicted label (% of the row's clips, mean over seeds)", color=PALETTE["muted"])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel(f"predicted label ({count} classes, in the dataset's order)", color=PALETTE["muted"])
        axes.set_ylabel("true label")
        axes.yaxis.label.set_color(PALETTE["muted"])
    return figure


def cell_names(found: Confusion, figure: Figure) -> list[tuple[tuple[float, float, float, float], str]]:
    """Return the place of each cell that has clips, (left, top, width, height) in points of the drawing, and its name.

    Of many cells, those with the most clips.
    """
    width, height = (72 * inches for inches in figure.get_size_inches())
    place, count = figure.axes[0].get_position(), len(found.labels)
    across, down = place.width * width / count, place.height * height / count
    clips = found.shares * np.array(found.n)[:, None]
    named = []
    for cell in np.argsort(-clips, axis=None, kind="stable")[:MOST_NAMED].tolist():
        i, j = divmod(cell, count)
        if clips[i, j]:
            of = f"{clips[i, j]:.1f}".removesuffix(".0")
            at = (place.x0 * width + j * across, (1 - place.y1) * height + i * down, across, down)
            named.append((at, f"{found.labels[i]}, predicted as {found.labels[j]}: {of} of {found.n[i]} clips"))
    return named


def _rows_figure(rows: float, *, row_inches: float, narrow: bool) -> tuple[Figure, Axes]:
    """Return a figure of rows from top to bottom on a percent scale, with room for labels and values."""
    row_inches = max(row_inches, NARROW_ROW) if narrow else row_inches
    figure = Figure(figsize=(NARROW if narrow else WIDTH, rows * row_inches + 1.0), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(rows - 0.4, -0.7 if narrow else -0.6)
    axes.set_xlim(0, 104)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return figure, axes


def _row_labels(
    axes: Axes, labels: Sequence[str], places: Sequence[float] | None = None, *, narrow: bool = False
) -> None:
    """Write the label of each row to its left, or above it."""
    places = range(len(labels)) if places is None else places
    axes.set_yticks([] if narrow else places, [] if narrow else [shortened(label) for label in labels])
    axes.tick_params(axis="y", pad=7)  # keep clear of a mark at 0
    for place, label in zip(places, labels, strict=True) if narrow else ():
        text = shortened(label, NARROW_LABEL)
        axes.text(0, place - ABOVE, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def _values(
    axes: Axes, measures: Sequence[Measure], places: Sequence[float] | None = None, *, narrow: bool = False
) -> None:
    """Write the mean and interval of each row to its right, or above its right end."""
    values = [(percent(one.mean), f"{percent(one.low)} to {percent(one.high)}") for one in measures]
    right, muted = axes.get_yaxis_transform(), PALETTE["muted"]
    mean_at = 0.98 - 0.018 * max(len(ends) for _, ends in values)
    for place, (mean, ends) in zip(range(len(values)) if places is None else places, values, strict=True):
        if narrow:
            axes.text(mean_at, place - ABOVE, mean, transform=right, va="center", ha="right", fontsize=8)
            axes.text(1, place - ABOVE, ends, transform=right, va="center", ha="right", fontsize=7.5, color=muted)
        else:
            axes.text(1.02, place, mean, transform=right, va="center", fontsize=8.5)
            axes.text(1.12, place, ends, transform=right, va="center", fontsize=8, color=muted)


def _interval(axes: Axes, place: float, measure: Measure, looks: Looks, role: str, *, is_full: bool) -> None:
    look = look_of(looks, role)
    color = PALETTE[look.color]
    ends = [100 * measure.low, 100 * measure.high]
    whole: dict[str, Any] = {"color": color, "clip_on": False}  # the axes' edge must not cut off marks at 0
    axes.plot(ends, [place, place], linewidth=2, solid_capstyle="round", **whole)
    face = color if is_full else PALETTE["paper"]
    axes.plot([100 * measure.mean], [place], look.marker, mfc=face, markersize=6, mew=1.6, **whole)


def _whisker(axes: Axes, place: float, measure: Measure, color: str) -> None:
    ends = [100 * measure.low, 100 * measure.high]
    axes.plot(ends, [place, place], color=color, linewidth=1.1)
    axes.plot(ends, [place, place], "|", color=color, markersize=6, mew=1.1)


def _ceiling(axes: Axes, ceiling: Ceiling, *, is_leftmost: bool = False) -> None:
    place = 100 * ceiling.accuracy
    axes.axvline(place, color=PALETTE["ink"], linewidth=1.1, linestyle="--", zorder=0)
    _name_above(axes, f"ceiling {place:.1f}", place, "right" if place > 60 or is_leftmost else "left")


def _name_above(axes: Axes, name: str, place: float, align: str) -> None:
    """Write the name of a vertical line above the axes."""
    axes.annotate(
        name,
        (place, 1),
        (0, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha=align,
        va="bottom",
        fontsize=8,
        color=PALETTE["muted"],
    )


# files and pages


def png(figure: Figure, *, dpi: int = DPI) -> bytes:
    """Return a figure as PNG bytes on white; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with _style():
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG bytes on white, its text as outlines, so that no font is needed."""
    return _svg(figure, fonttype="path", facecolor="white").encode()


def _svg(figure: Figure, *, fonttype: str, facecolor: str) -> str:
    buffer = io.StringIO()
    with _style({"svg.fonttype": fonttype}):
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", facecolor=facecolor, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def write_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as <name>.png and <name>.svg; return the files."""
    written = []
    for name, figure in figures.items():
        for suffix, content in ((".png", png(figure)), (".svg", svg(figure))):
            write_atomically(folder / f"{name}{suffix}", content)
            written.append(folder / f"{name}{suffix}")
    return written


def inline_svg(
    figure: Figure,
    name: str,
    title: str,
    names: Sequence[tuple[tuple[float, float, float, float], str]] = (),
) -> str:
    """Return a figure as an <svg> element for a page that defines the css variables of `PALETTE`.

    Args:
        figure: a figure in the colours of `PALETTE`.
        name: letters, digits and "-", unique in the page; prefix of all ids.
        title: description for screen readers.
        names: (left, top, width, height) in points -> what is shown while the pointer is there.
    """
    drawing = ElementTree.fromstring(_svg(figure, fonttype="none", facecolor="none"))
    for parent in drawing.iter():
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):  # the style applies to every element; page.css has it
                parent.remove(child)
    for element in drawing.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for attribute, value in list(element.attrib.items()):
            del element.attrib[attribute]
            plain = attribute.rpartition("}")[2]  # in a page, xlink:href is href
            element.attrib[plain] = _inlined(plain, value, name)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    drawing.attrib = {
        "xmlns": _SVG.strip("{}"),
        "viewBox": drawing.attrib["viewBox"],
        "class": "plot",
        "role": "img",
        "aria-label": title,
        "style": f"--w:{width}px",
        "width": str(width),
        "height": str(height),
    }
    if not names:  # a title would be shown over the whole figure
        ElementTree.SubElement(drawing, "title").text = title
    over = ElementTree.SubElement(drawing, "g", {"class": "names"}) if names else drawing
    for at, text in names:
        sizes = {key: f"{value:.1f}" for key, value in zip(("x", "y", "width", "height"), at, strict=True)}
        ElementTree.SubElement(ElementTree.SubElement(over, "rect", sizes), "title").text = shortened(text, 300)
    return ElementTree.tostring(drawing, encoding="unicode")


def _inlined(attribute: str, value: str, name: str) -> str:
    """Return an attribute's value with ids made unique to this figure, and colours replaced by css variables."""
    if attribute == "id":
        return f"{name}-{value}"
    if attribute == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = value.replace("url(#", f"url(#{name}-")
    for variable, color in PALETTE.items():
        value = value.replace(color, f"var(--{variable})")
    return value
