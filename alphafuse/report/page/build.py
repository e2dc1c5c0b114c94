"""`write_report`: write the html page of a root's runs.

runs -> predictions of heads (`votes`) -> data of every section (`sections`) -> figures -> `html` -> the file
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from alphafuse.data.dataset import Dataset
from alphafuse.data.splits import reachable_ceiling
from alphafuse.errors import AlphafuseError, ExperimentError
from alphafuse.heads.studies.evaluate import load_embeddings_of, trained_labels
from alphafuse.report.contents import Absent, Report, Role, Votes
from alphafuse.report.figures import write_figures
from alphafuse.report.looks import looks_of, roles_of
from alphafuse.system.files import one_line, write_atomically

from .excerpts import excerpts
from .explorer import explored_clip_ids, explorer_html
from .html import draw_figures, render_page
from .sections import collect, find_runs, first_command
from .votes import Side, ask_heads, explorable_sides, find_sides, with_shares

EXPLORER_EDGE = 112  # pixels of the explorer's images: up to 400 images of about 3 kB


def write_report(
    dataset: Dataset,
    out: str | Path,
    *,
    runs: Sequence[str | Path] = (),
    figures: str | Path | None = None,
    progress: Callable[[str], object] = lambda doing: None,
) -> Path:
    """Write one self-contained html page of a root's runs.

    It leads with the answer: what each stream adds, in all and per class, what it should weigh, and the clips that are
    hardest, with a picture and two seconds of sound. The source of every number follows. Sections without data are
    left out; the page ends with the commands that add them.

    Args:
        dataset: the root. Sections that need predictions are missing unless its test split is extracted.
        out: the html file, written atomically.
        runs: run folders to show; by default all of the root's. Votes, confusions and gains are those of the first
            named run with fused heads; by default, of the `fit` run with the highest validation accuracy, else of
            table 1.
        figures: folder to write each figure to, as .png and .svg.
        progress: called with a few words at each step.

    Returns:
        `out`.

    Raises:
        ExperimentError: a folder in `runs` is not a run, or there is no run to report on.
        AlphafuseError: `out` or `figures` can't be written.

    >>> from alphafuse import Dataset, write_report
    >>> write_report(Dataset.open("demo"), "report.html").name
    'report.html'
    """
    report, drawn = build_report(dataset, runs=[Path(run) for run in runs], progress=progress)
    progress("writing the page")
    page = render_page(report, drawn)
    if figures is not None:
        write_figures(drawn, Path(figures))
    write_atomically(Path(out), page.encode())
    return Path(out)


def build_report(
    dataset: Dataset, *, runs: Sequence[Path] = (), progress: Callable[[str], object] = lambda doing: None
) -> tuple[Report, dict[str, Figure]]:
    """Return the data of the page, and its figures by name; see `write_report`."""
    found, left_out = find_runs(dataset, runs)
    if not found:
        raise ExperimentError(
            f"no run in {dataset.root / 'runs'} to report on: make one with `{first_command(dataset.root)}`"
        )
    lead = roles_of(dataset.media)[0]
    sides = find_sides(found, roles_of(dataset.media), chosen=bool(runs), problems=left_out)
    explorable = explorable_sides(found, sides[lead]) if lead in sides else []
    votes = _votes(dataset, sides, explorable, progress)
    progress("reading the runs")
    report = replace(collect(dataset, found, left_out, votes), is_chosen=bool(runs))
    if isinstance(votes, Votes):
        report = replace(report, explorer=_explorer(dataset, explorable, progress))
    progress("drawing")
    return report, draw_figures(report)


def _kind(dataset: Dataset) -> str:
    return "fused heads" if len(dataset.media) > 1 else "heads"


def _votes(
    dataset: Dataset, sides: Mapping[Role, Side], explorable: Sequence[Side], progress: Callable[[str], object]
) -> Votes | Absent:
    if not explorable:
        return Absent(
            f"Heads for predictions, confusions and the hardest clips ({_kind(dataset)})", first_command(dataset.root)
        )
    try:
        votes = with_shares(dataset, ask_heads(dataset, sides, progress=progress), explorable)
    except AlphafuseError as error:
        return Absent(f"The heads can't be used: {one_line(error)}")
    paths = {clip.clip_id: dataset.path_of(clip) for clip in dataset.manifest.of_split("test")}
    progress("reading pictures and sounds of the hardest clips")
    found = excerpts({clip.clip_id: paths[clip.clip_id] for clip in votes.hardest}, sound=True)
    hardest = tuple(
        replace(clip, picture=found[clip.clip_id].picture, sound=found[clip.clip_id].sound) for clip in votes.hardest
    )
    return replace(votes, hardest=hardest)


def _explorer(dataset: Dataset, sides: Sequence[Side], progress: Callable[[str], object]) -> str | Absent:
    """Return the explorer of the first of these heads that can be explored."""
    reason = ""
    embeddings = load_embeddings_of(dataset, "test")  # `_votes` has already read them without an error
    paths = {clip.clip_id: dataset.path_of(clip) for clip in dataset.manifest.of_split("test")}
    for side in sides:
        try:
            chosen = explored_clip_ids(side.heads, embeddings)
            progress("reading pictures for the explorer")
            found = excerpts({clip_id: paths[clip_id] for clip_id in chosen}, edge=EXPLORER_EDGE)
            labels = [label for one, label in zip(embeddings.clip_ids, embeddings.labels, strict=True) if one in found]
            return explorer_html(
                side.heads,
                embeddings,
                ceiling=reachable_ceiling(trained_labels(dataset, side.heads[0].config), labels),
                title=side.name,
                looks=looks_of(dataset.media),
                note=f"The {_kind(dataset)} at the top of this page can't be explored: {reason}." if reason else "",
                thumbnails={clip_id: one.picture for clip_id, one in found.items() if one.picture},
            )
        except AlphafuseError as error:
            reason = reason or one_line(error)
    return Absent(f"No explorer: {reason}", f"alphafuse fit --root {shlex.quote(str(dataset.root))}")
