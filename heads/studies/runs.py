"""What a trained run knows of itself, read back: its heads, what they expect of embeddings, and how they did.

Everything is in the run's folder (`config.json`, `metrics.json`, `head/`, `heads/`), so a run can be copied anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphafuse.data.dataset import Dataset
from alphafuse.errors import AlphafuseError, DatasetError, ExperimentError
from alphafuse.heads.model.config import BASELINE
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.system.files import read_json, write_json

from .experiments import TABLE1_RUN, Experiment, load_heads, save_heads

TRAIN_FIRST = "train one with `alphafuse fit`, or name a run folder under <root>/runs/"


@dataclass(frozen=True)
class TrainedRun:
    """A run with heads, as `read_run` finds it.

    Attributes:
        folder: where it is.
        experiment: what its heads fuse, and how.
        heads: one per seed, on the CPU, in eval mode.
        config: all of config.json: classes, clips, dataset, settings, seeds, versions, ...
        metrics: "val" and "test" -> what metrics.json holds: n, top1, loss, ... with intervals, and the ceiling.

    >>> from alphafuse import read_run
    >>> run = read_run("demo/runs/sqrt-ast")
    >>> len(run.classes), run.modalities, run.embeddings["ast"]["protocol"]
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
    def modalities(self) -> tuple[str, ...]:
        """What the heads read."""
        return self.heads[0].config.modalities

    @property
    def embeddings(self) -> Mapping[str, Mapping[str, Any]]:
        """modality -> the settings of the embeddings that the heads were trained on, as a store has them."""
        return self.config["embeddings"]

    @property
    def encoders(self) -> Mapping[str, Mapping[str, str]]:
        """modality -> {"name", "revision"} of the encoder that made them; empty where the store didn't say."""
        return self.config.get("encoders", {})

    def write(self, folder: str | Path) -> None:
        """Write the run to another folder, so that `read_run` finds it there: config.json last."""
        folder = Path(folder)
        save_heads(zip(self.config["seeds"], self.heads, strict=True), folder)
        write_json(folder / "metrics.json", self.metrics)
        write_json(folder / "config.json", self.config)


def read_run(folder: Path | str) -> TrainedRun:
    """Read a run that `fit` wrote, or the untransformed heads of one that `table1` wrote.

    Raises:
        ExperimentError: no run there, one that keeps no heads (a sweep, a comparison), or a damaged file.

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
        kind = config.get("kind")
        if kind == TABLE1_RUN:
            config, metrics = _of_table1(folder, config)
            heads = load_heads(folder / "heads" / BASELINE.name)
        elif kind == "fit":
            metrics, heads = read_json(folder / "metrics.json"), load_heads(folder)
        else:
            what = {"sweep": "a sweep", "compare": "a comparison"}.get(str(kind), "something else")
            raise ExperimentError(f"{folder} is {what}, which keeps no heads: {TRAIN_FIRST}")
        absent = [modality for modality in heads[0].config.modalities if modality not in config["embeddings"]]
        if absent or len(config["seeds"]) != len(heads):
            raise ExperimentError(f"config.json and the heads in {folder} don't belong together: train it again")
        return TrainedRun(folder, Experiment(**config["experiment"]), tuple(heads), config, metrics)
    except DatasetError as error:
        raise ExperimentError(f"the run in {folder} can't be read: {error}: {TRAIN_FIRST}") from None
    except (KeyError, TypeError) as error:
        raise ExperimentError(f"config.json in {folder} is not a run's ({error!r}): {TRAIN_FIRST}") from None


def _of_table1(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and metrics.json of table 1's untransformed heads, as `fit` would have written them."""
    row = read_json(folder / "table1.json")["rows"][0]
    experiment = {name: row["experiment"][name] for name in Experiment.__dataclass_fields__}
    config = {name: value for name, value in config.items() if name != "experiments"}
    return {**config, "kind": "fit", "experiment": experiment}, {split: row[split] for split in ("val", "test")}


def validation_rank(val: Mapping[str, Any]) -> tuple[float, float]:
    """What runs are sorted by, the best first: accuracy on validation clips, then loss, from a run's json."""
    return -float(val["top1"]["mean"]), float(val["loss"]["mean"])


def best_run(dataset: Dataset) -> Path:
    """The run of a root whose heads were right most often on validation clips; of equals, the one of least loss there.

    Among those that `fit` wrote and table 1's untransformed heads. Test figures play no part.

    Raises:
        ExperimentError: the root has no run with heads.

    >>> from alphafuse import Dataset, best_run
    >>> best_run(Dataset.open("demo")).parent.as_posix()
    'demo/runs'
    """
    runs = dataset.root / "runs"
    found: list[tuple[float, float, Path]] = []
    for folder in sorted(runs.glob("*/")):
        try:
            kind = read_json(folder / "config.json").get("kind")
            if kind == "fit":
                val = read_json(folder / "metrics.json")["val"]
            elif kind == TABLE1_RUN and (folder / "heads").is_dir():
                val = read_json(folder / "table1.json")["rows"][0]["val"]
            else:
                continue
            found.append((*validation_rank(val), folder))
        except (AlphafuseError, KeyError, TypeError):
            continue  # no run, or a damaged one: whoever names it learns what is wrong with it
    if found:
        return min(found)[2]
    raise ExperimentError(f"no trained run in {runs}: train one with `alphafuse fit --root {dataset.root}`")
