"""`fit`: train one experiment, score it, and save its heads.

The test split is scored once, after training, and nothing is chosen on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alphafuse.data.dataset import Dataset
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import TrainedHead
from alphafuse.system.cluster import require_engine
from alphafuse.system.progress import NO_PROGRESS, Progress

from .runs import check_run_name, write_run
from .same_clips import EVALUATED, SameClips, SplitResult, epochs_of, seed_range


@dataclass(frozen=True)
class RunResult:
    """Result of `fit`.

    Attributes:
        experiment, settings, seeds: arguments of the call; the experiment is completed by `Experiment.of`.
        folder: the run folder.
        splits: "val" and "test" -> results.
        heads: one head per seed, in the order of `seeds`.
        dropped: split -> clips left out because they lack a stream.

    >>> from alphafuse import Dataset, Experiment, TrainSettings, fit
    >>> quick = TrainSettings(epochs=2, hidden=(16,))
    >>> result = fit(Dataset.open("demo"), Experiment("sqrt", on="ast"), seeds=2, settings=quick, run="quick")
    >>> result.splits["val"].n, result.splits["test"].n
    (26, 192)
    >>> result.heads[1].seed, result.heads[1].history.val_loss.shape
    (1, (2,))
    """

    experiment: Experiment
    settings: TrainSettings
    seeds: tuple[int, ...]
    folder: Path
    splits: Mapping[str, SplitResult]
    heads: tuple[TrainedHead, ...]
    dropped: Mapping[str, int]

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} top1={result.top1!r} n={result.n}" for name, result in self.splits.items())
        return f"RunResult({self.experiment.title}, {len(self.seeds)} seeds, {figures}, folder={str(self.folder)!r})"

    def to_json(self) -> dict[str, Any]:
        """Every figure of both splits, json-able."""
        return {split: result.to_json() for split, result in self.splits.items()}


def fit(
    dataset: Dataset,
    experiment: Experiment,
    *,
    seeds: int = 1,
    first_seed: int = 0,
    settings: TrainSettings | None = None,
    run: str | None = None,
    progress: Progress = NO_PROGRESS,
    engine: str = "local",
    address: str | None = None,
) -> RunResult:
    """Train one experiment, score validation and test, and write the run folder.

    Args:
        dataset: a dataset whose three splits are extracted.
        experiment: streams, transform and fusion; without streams, the head reads all that the embeddings have.
        seeds, first_seed: one head for each of the seeds first_seed, first_seed + 1, ...
        settings: training settings; the paper's by default.
        run: name of the run; by default the experiment's name. An older run of that name is replaced.
        progress: counts finished epochs, `seeds * settings.total_epochs` in total.
        engine: "local" trains on this machine, "ray" on the nodes of a Ray cluster; the figures are the same.
        address: address of the Ray cluster, such as "auto"; None uses the environment variable RAY_ADDRESS, or starts
            Ray on this machine.

    Raises:
        DatasetError, StoreError: splits that are empty or not extracted.
        ExperimentError: settings that don't fit, an invalid name, or a loss that is not finite.
        ClusterError: an unknown engine, or a Ray cluster that can't be used.

    >>> from alphafuse import AlphaFusion, Dataset, Experiment, fit
    >>> result = fit(Dataset.open("demo"), Experiment("sqrt", on="ast"))
    >>> result.splits["test"]
    SplitResult(test: n=192, top1=0.8... [0.7..., 0.8...], loss=0.6... [0.4..., 0.8...])
    >>> AlphaFusion.from_pretrained(result.folder).config.experiment.name
    'sqrt-ast'
    """
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f'fit takes an Experiment, not {experiment!r}: Experiment("sqrt", on="ast")')
    require_engine(engine)
    settings = settings or TrainSettings()
    chosen = seed_range(seeds, first_seed)
    if run:
        check_run_name(run, "fit")
    clips = SameClips.load(dataset, settings, chosen, experiment)
    experiment = experiment.of(clips.streams)
    name = run or experiment.name
    check_run_name(name)
    with epochs_of(progress, experiment.title, len(chosen), settings) as shown:
        (trained,) = clips.train(
            [experiment], chosen, settings=settings, progress=shown, engine=engine, address=address
        )
    assert trained.test is not None
    splits = dict(zip(EVALUATED, (trained.val, trained.test), strict=True))
    folder = write_run(
        dataset.root,
        name,
        kind="fit",
        config={
            "experiment": asdict(experiment),
            "head": trained.heads[0].head.config.to_json(),
            **clips.provenance,
            "clips": clips.counts,
            "dropped": clips.dropped,
        },
        figures={split: result.to_json() for split, result in splits.items()},
        history=[("", trained.heads)],
        predictions=splits.values(),
        heads={"": trained.heads},
    )
    return RunResult(experiment, settings, chosen, folder, splits, trained.heads, clips.dropped)
