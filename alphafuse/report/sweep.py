"""A sweep for people and programs: text, csv, json, and the curves of accuracy and loss against alpha.

runs/sweep-ast/ (or sweep-timesformer-ast, sweep-power-ast, ...)
  config.json     everything that made it; `alphafuse sweep --config` makes it again
  sweep.json      every figure and interval
  sweep.csv       a line per point: on, alpha, validation accuracy and loss with intervals, chosen or not
  history.csv     experiment, seed, epoch, train_loss, val_loss, val_accuracy
  sweep.png       both curves with their 95% bands
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alphafuse.data.dataset import Dataset
from alphafuse.heads.model.config import TITLES
from alphafuse.heads.studies.comparison import Trained
from alphafuse.heads.studies.experiments import SplitResult, experiment_history, replaced_run
from alphafuse.heads.studies.sweep import Chosen, Sweep
from alphafuse.heads.training.settings import NORMALIZE_NOTES
from alphafuse.system.files import write_atomically, write_csv, write_json

from .contents import AlphaCurves
from .figures import alpha_curves, png
from .text import loss_range, methods, p_value, percent, percent_range, seeds_text, split_counts, table_text, wrapped

HEADER = ("on", "alpha", "val top-1", "interval", "val loss", "interval", "", "test top-1", "interval", "p")
LEFT_ALIGNED = ("on", "")
ENDS = ("", "_low", "_high")


def write_sweep(sweep: Sweep, dataset: Dataset, *, run: str | None = None) -> Path:
    """Write the run folder whole, in place of an older one, and return it; `run` is its name if not `sweep.name`.

    >>> from alphafuse import Dataset, TrainSettings, sweep, write_sweep
    >>> dataset = Dataset.open("demo")
    >>> quick = TrainSettings(epochs=2, hidden=(16,))
    >>> folder = write_sweep(sweep(dataset, on=["ast"], alphas=[0.5, 1.0], seeds=1, settings=quick), dataset)
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'history.csv', 'sweep.csv', 'sweep.json', 'sweep.png']
    """
    name = run or sweep.name
    with replaced_run(dataset.root, name) as folder:
        write_json(folder / "config.json", config_json(sweep))
        write_json(folder / "sweep.json", to_json(sweep))
        write_csv(folder / "sweep.csv", _csv_rows(sweep))
        write_csv(folder / "history.csv", experiment_history([sweep.baseline, *_points(sweep)]))
        write_atomically(folder / "sweep.png", figure(sweep))
    return dataset.root / "runs" / name


def config_json(sweep: Sweep) -> dict[str, Any]:
    """What config.json holds: the call's own arguments under `sweep`, and what else made the figures."""
    return {
        "kind": "sweep",
        "sweep": {
            "transform": sweep.transform,
            "on": list(sweep.on),
            "alphas": list(sweep.alphas),
            "seeds": len(sweep.seeds),
            "first_seed": sweep.seeds[0],
            "settings": sweep.settings.to_json(),
        },
        **sweep.provenance,
        "clips": dict(sweep.clips),
        "dropped": dict(sweep.dropped),
    }


def format_text(sweep: Sweep) -> str:
    """The curves as a table, and what the chosen alphas reach on test clips."""
    rows = [HEADER, _cells("", sweep.baseline, None, sweep.baseline.test)]
    for on, curve in sweep.curves.items():
        rows += [_cells(TITLES[on], point, sweep.chosen[on], None) for point in curve]
    clips = f"{sweep.clips['train']} train, {sweep.clips['val']} val, {sweep.clips['test']} test clips"
    title = f"{sweep.transform} on {sweep.dataset_name}: {clips}, {seeds_text(sweep.seeds)}"
    return "\n".join([title, "", *table_text(rows, left=LEFT_ALIGNED), *wrapped(_notes(sweep))]) + "\n"


def _cells(on: str, point: Trained, chosen: Chosen | None, test: SplitResult | None) -> tuple[str, ...]:
    alpha = point.experiment.alpha
    is_chosen = chosen is not None and chosen.point is point
    if is_chosen and chosen:
        test = chosen.test
    return (
        on or "untransformed",
        "" if alpha is None else f"{alpha:g}",
        percent(point.val.top1.mean),
        percent_range(point.val.top1.interval),
        f"{point.val.loss.mean:.3f}",
        loss_range(point.val.loss),
        "<- chosen" if is_chosen else "",
        percent(test.top1.mean) if test else "",
        percent_range(test.top1.interval) if test else "",
        p_value(chosen.comparison.p_holm) if is_chosen and chosen else "",
    )


def _notes(sweep: Sweep) -> list[str]:
    test = sweep.baseline.test
    assert test is not None
    notes = []
    method = next(iter(sweep.chosen.values())).comparison.test.method
    for on, found in sweep.chosen.items():
        interval = percent_range(found.comparison.interval, sign="+")
        gap = f"{100 * found.comparison.test.difference:+.1f} points ({interval})"
        verdict = "differs from" if found.comparison.is_found else "can't be told from"
        notes.append(f"{TITLES[on]} {found.point.experiment.alpha:g} {verdict} the untransformed head on test: {gap}.")
    notes += [
        f"{test.n} test clips resolve differences from about {percent(sweep.resolvable_gap)} points on (paired test, "
        f"80% "
        "power).",
        "Chosen: highest mean validation accuracy, of equals the least loss; its validation figure is that of the best "
        "of "
        f"{len(sweep.alphas)}, so look at its test figure, which was scored once.",
        f"Ceiling: val {percent(sweep.baseline.val.ceiling.accuracy)}%, test {percent(test.ceiling.accuracy)}% (share "
        f"of "
        "clips whose label occurs in training).",
        f"Accuracies in %, means over seeds; n = {sweep.baseline.val.n} val and {test.n} test clips. {methods(test)}",
        f"p: {method} against the untransformed head, Holm-corrected over the curves.",
    ]
    if sweep.settings.normalize != "none":
        notes.append(NORMALIZE_NOTES[sweep.settings.normalize])
    if any(sweep.dropped.values()):
        notes.append(f"Left out because they lack a modality: {split_counts(sweep.dropped)}.")
    return notes


def to_json(sweep: Sweep) -> dict[str, Any]:
    """Every figure of the sweep, json-able."""
    assert sweep.baseline.test is not None
    return {
        "dataset": sweep.dataset_name,
        "transform": sweep.transform,
        "clips": dict(sweep.clips),
        "seeds": list(sweep.seeds),
        "baseline": {"val": sweep.baseline.val.to_json(), "test": sweep.baseline.test.to_json()},
        "curves": {
            on: [{"alpha": point.experiment.alpha, "val": point.val.to_json()} for point in curve]
            for on, curve in sweep.curves.items()
        },
        "chosen": {
            on: {
                "alpha": found.point.experiment.alpha,
                "test": found.test.to_json(),
                "against_baseline": found.comparison.to_json(),
            }
            for on, found in sweep.chosen.items()
        },
        "smallest_resolvable_gap": sweep.resolvable_gap,
    }


def _points(sweep: Sweep) -> list[Trained]:
    return [point for curve in sweep.curves.values() for point in curve]


def _csv_rows(sweep: Sweep) -> Iterator[tuple[object, ...]]:
    names = [f"{split}_{figure}{end}" for split in ("val", "test") for figure in ("top1", "loss") for end in ENDS]
    yield ("on", "transform", "alpha", "seeds", "chosen", *names)
    test = sweep.baseline.test
    assert test is not None
    seeds = len(sweep.seeds)
    yield ("", "none", "", seeds, 0, *_figures(sweep.baseline.val), *_figures(test))
    for on, curve in sweep.curves.items():
        for point in curve:
            found = sweep.chosen[on]
            of_test = _figures(found.test) if found.point is point else [""] * 6
            flag = int(found.point is point)
            yield (on, sweep.transform, point.experiment.alpha, seeds, flag, *_figures(point.val), *of_test)


def _figures(result: SplitResult) -> list[float]:
    return [
        value for found in (result.top1, result.loss) for value in (found.mean, found.interval.low, found.interval.high)
    ]


def figure(sweep: Sweep) -> bytes:
    """PNG: validation accuracy and loss against alpha with 95% bands, and the chosen alphas' test results."""
    return png(alpha_curves(AlphaCurves.from_json(to_json(sweep))))
