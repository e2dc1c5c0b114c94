"""The best run of a root: what `predict` uses when no run is named."""

from __future__ import annotations

from pathlib import Path

from alphafuse.data.dataset import Dataset
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import BASELINE

from .runs import DAMAGED, HEADS, list_runs


def best_run(dataset: Dataset | str | Path) -> Path:
    """Return the run of a root with the highest validation accuracy; among equals, with the lowest validation loss.

    Candidates are the runs of `fit` and `weigh`, and table 1's untransformed heads. Test figures are not used.

    Raises:
        ExperimentError: the root has no run with heads.

    >>> from alphafuse import Dataset, best_run
    >>> best_run(Dataset.open("demo")).parent.as_posix()
    'demo/runs'
    """
    dataset = Dataset.open(dataset)
    found: list[tuple[tuple[float, float], Path]] = []
    for run in list_runs(dataset.root)[0]:
        if run.kind in HEADS or (run.kind == "table1" and run.heads_folder(BASELINE.name).is_dir()):
            try:
                found.append((run.validation_rank(), run.folder))
            except DAMAGED:
                continue  # `read_run` reports the damage when the run is named
    if found:
        return min(found)[1]
    runs = dataset.root / "runs"
    raise ExperimentError(f"no trained run in {runs}: train one with `alphafuse fit --root {dataset.root}`")
