"""`fit`: train one experiment, score it, and save its heads.

The test split is scored once, after training, and nothing is chosen on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphafuse.data.dataset import Dataset
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import BASELINE, Experiment
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import TrainedHead
from alphafuse.system.cluster import connected, require_engine
from alphafuse.system.progress import NO_PROGRESS, Progress
from alphafuse.system.results import Tabular

from .predictions import Predictions
from .probe import Probe, points_for, probe_grid
from .runs import TrainedRun, check_run_name, figures_of, write_trained
from .same_clips import EVALUATED, SameClips, SplitResult, epochs_of, seed_range


@dataclass(frozen=True)
class RunResult(Tabular):
    """Result of `fit`.

    Attributes:
        experiment, seeds: arguments of the call; the experiment is completed by `Experiment.of`.
        settings: training settings of the heads: those of the call, or those that the probe chose.
        folder: the run folder.
        splits: "val" and "test" -> results.
        heads: one head per seed, in the order of `seeds`.
        dropped: split -> clips left out because they lack a stream.
        probe: how the settings were chosen; None without a probe.
        config: content of config.json.

    >>> from alphafuse import Dataset, Experiment, TrainSettings, fit
    >>> quick = TrainSettings(epochs=2, hidden=(16,))
    >>> result = fit(Dataset.open("demo"), Experiment("sqrt", on="ast"), seeds=2, settings=quick, run="quick")
    >>> result.splits["val"].n, result.splits["test"].n
    (26, 192)
    >>> result.heads[1].seed, result.heads[1].history.val_loss.shape
    (1, (2,))
    >>> result.predictions("val")
    Predictions(val: n=26, 16 classes, top1=0... [0..., 0...])
    """

    experiment: Experiment
    settings: TrainSettings
    seeds: tuple[int, ...]
    folder: Path
    splits: Mapping[str, SplitResult]
    heads: tuple[TrainedHead, ...]
    dropped: Mapping[str, int]
    probe: Probe | None
    config: Mapping[str, Any]

    @property
    def classes(self) -> int:
        """Number of classes that the heads tell apart."""
        return len(self.heads[0].head.config.classes)

    @property
    def answer(self) -> str:
        """How often the heads are right on test clips, in a sentence."""
        return str(self.to_json()["answer"])

    @property
    def note_on_encoders(self) -> str:
        """Names the streams whose encoders stand in for real ones; "" if there are none."""
        return str(self.to_json()["note_on_encoders"])

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} top1={result.top1!r} n={result.n}" for name, result in self.splits.items())
        return f"RunResult({self.experiment.title}, {len(self.seeds)} seeds, {figures}, folder={str(self.folder)!r})"

    @property
    def trained(self) -> TrainedRun:
        """The run as `read_run` reads it, with the heads of this result."""
        heads = tuple(one.head for one in self.heads)
        return TrainedRun(self.folder, self.experiment, heads, self.config, self.to_json())

    def predictions(self, split: str = "test") -> Predictions:
        """Return the heads' answers for every clip of a split, see `TrainedRun.predictions`."""
        return self.trained.predictions(split)

    def to_json(self) -> dict[str, Any]:
        """What they say, and every figure of both splits, json-able."""
        return figures_of(self.splits, self.config)


def fit(
    dataset: Dataset | str | Path,
    experiment: Experiment = BASELINE,
    *,
    seeds: int = 1,
    first_seed: int = 0,
    settings: TrainSettings | None = None,
    probe: bool = False,
    run: str | None = None,
    progress: Progress = NO_PROGRESS,
    engine: str = "local",
    address: str | None = None,
) -> RunResult:
    """Train one experiment, score validation and test, and write the run folder.

    Args:
        dataset: a dataset, or its folder, whose three splits are extracted.
        experiment: streams, transform and fusion; by default all streams that the embeddings have, untransformed.
        seeds, first_seed: one head for each of the seeds first_seed, first_seed + 1, ...
        settings: training settings; the paper's by default.
        probe: choose a linear or an MLP head (that of `settings`), learning rate and weight decay on validation clips
            (see `heads.studies.probe`); `settings` decides everything else.
        run: name of the run; by default the experiment's name. An older run of that name is replaced.
        progress: counts finished epochs, `seeds * settings.total_epochs` in total, and `settings.total_epochs` for
            each point of a probe.
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
    dataset = Dataset.open(dataset)
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f'fit takes an Experiment, not {experiment!r}: Experiment("sqrt", on="ast")')
    require_engine(engine)
    settings = settings or TrainSettings()
    chosen = seed_range(seeds, first_seed)
    if run:
        check_run_name(run, "fit")
    experiment = experiment.with_senses(dataset.media)
    clips = SameClips.load(dataset, settings, chosen, experiment)
    experiment = experiment.of(clips.streams)
    name = run or experiment.name
    check_run_name(name)
    points = len(points_for(experiment, probe_grid(settings))) if probe else 0
    with (
        connected(address) if engine == "ray" else nullcontext(),  # one connection for all calls of `train`
        epochs_of(progress, experiment.title, points + len(chosen), settings) as shown,
    ):
        train = clips.train_probed if probe else clips.train
        (trained,) = train([experiment], chosen, settings=settings, progress=shown, engine=engine, address=address)
    assert trained.test is not None
    written = write_trained(
        dataset.root,
        name,
        trained,
        settings=settings,
        provenance=clips.provenance,
        clips=clips.counts,
        dropped=clips.dropped,
    )
    used = trained.probe.settings if trained.probe else settings
    splits = dict(zip(EVALUATED, (trained.val, trained.test), strict=True))
    return RunResult(
        experiment, used, chosen, written.folder, splits, trained.heads, clips.dropped, trained.probe, written.config
    )
