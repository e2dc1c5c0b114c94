"""Experiments: an experiment says what is fused how; `fit` trains it, scores it and writes a run folder.

Nothing is chosen on test: every head is the last epoch's, and test is scored once, after training.

A run folder, `<root>/runs/<name>/`, appears whole; an older run of that name is replaced when the new one is complete:

    config.json            everything that made it
    metrics.json           per split: n, accuracy and loss with intervals, per seed, and the reachable ceiling
    history.csv            seed, epoch, train_loss, val_loss, val_accuracy
    predictions-val.csv    clip_id, group, label, seed, predicted, correct, loss
    predictions-test.csv
    head/                  the first seed's head
    heads/seed-<n>/        the heads of the other seeds
"""

from __future__ import annotations

import platform
import re
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from alphafuse.data.dataset import Dataset
from alphafuse.data.splits import Ceiling, reachable_ceiling
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.data.streams import MODALITIES
from alphafuse.errors import ExperimentError, unknown
from alphafuse.heads.model.fusion import check_fusion
from alphafuse.heads.model.head import (
    BOTH,
    NORMALIZATIONS,
    AlphaFusion,
    HeadConfig,
    check_controls,
    check_normalization,
    check_target,
    usable_clips,
)
from alphafuse.heads.model.transforms import NOTEBOOK_POS_SCALAR, check_transform
from alphafuse.heads.scoring.metrics import Scores, score
from alphafuse.heads.scoring.statistics import Estimate, Interval, accuracy_interval, bootstrap_interval
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import Progress, TrainedHead, class_indices, memory_bytes, train_heads
from alphafuse.system.cluster import require_engine
from alphafuse.system.files import write_csv, write_json
from alphafuse.system.processes import free_memory_bytes

TITLES = {"timesformer": "TimeSformer", "ast": "AST", BOTH: "both"}
EVALUATED = ("val", "test")
TABLE1_RUN, COMPARE_RUN = "table1", "compare"  # what the commands of these names write
RESERVED_RUNS = (TABLE1_RUN, COMPARE_RUN)


@dataclass(frozen=True)
class Experiment:
    """What is fused, and how.

    Attributes:
        transform: entry of `TRANSFORMS`.
        on: the modality that is transformed, "both", or None with transform "none".
        alpha: for the transforms that take one.
        fusion: entry of `FUSIONS`.
        modalities: what the head reads: both, or one.
        normalize: entry of `NORMALIZATIONS`; None takes the training settings'.
        rates: (modality, learning rate as a multiple of the common one), as in `HeadConfig`; a mapping will do.
        auxiliary: (modality or "fused", weight of its loss), as in `HeadConfig`; a mapping will do.

    Raises:
        ExperimentError: a name that doesn't exist, or parts that don't go together.

    >>> from alphafuse import Experiment
    >>> Experiment("sqrt", on="ast").name
    'sqrt-ast'
    >>> Experiment(modalities=("ast",)).title
    'AST only'
    >>> Experiment("sqr", on="ast")
    Traceback (most recent call last):
        ...
    alphafuse.errors.ExperimentError: unknown transform 'sqr' (did you mean 'sqrt'?): choose from none, sqrt, ...
    """

    transform: str = "none"
    on: str | None = None
    alpha: float | None = None
    fusion: str = "concat"
    modalities: tuple[str, ...] = MODALITIES
    normalize: Literal["none", "zscore", "l2"] | None = None
    rates: tuple[tuple[str, float], ...] = ()
    auxiliary: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for modality in self.modalities:
            if modality not in MODALITIES:
                raise ExperimentError(unknown("modality", modality, MODALITIES))
        object.__setattr__(self, "modalities", tuple(m for m in MODALITIES if m in self.modalities))
        if not self.modalities:
            raise ExperimentError(f"an experiment needs at least one modality: {', '.join(MODALITIES)}")
        check_transform(self.transform, self.alpha)
        check_target(self.transform, self.on, self.modalities)
        check_fusion(self.fusion, self.modalities)
        if self.normalize is not None:
            if self.normalize not in NORMALIZATIONS:
                raise ExperimentError(unknown("normalisation", self.normalize, NORMALIZATIONS))
            check_normalization(self.normalize, self.transform)
        for name in ("rates", "auxiliary"):
            pairs = dict(getattr(self, name))
            object.__setattr__(self, name, tuple(sorted((key, float(value)) for key, value in pairs.items())))
        check_controls(self.fusion, dict(self.rates), dict(self.auxiliary), self.modalities)
        if self.transform == "none":
            object.__setattr__(self, "on", None)  # none on ast = none on timesformer

    @property
    def name(self) -> str:
        """Short, for a run's folder: "sqrt-ast", "scale-0.5-timesformer", "untransformed", "ast-only", "gate"."""
        parts = [self.transform, "" if self.alpha is None else f"{self.alpha:g}", self.on or ""]
        single = len(self.modalities) == 1
        if self.transform == "none":
            parts = [] if single or self._more else ["untransformed"]
        parts += [f"{self.modalities[0]}-only"] if single else []
        return "-".join(part for part in (*parts, *self._more) if part)

    @property
    def title(self) -> str:
        """For a table's row: "AST sqrt", "untransformed", "AST only", "gate"."""
        alpha = "" if self.alpha is None else f" {self.alpha:g}"
        parts = [f"{TITLES[self.modalities[0]]} only"] if len(self.modalities) == 1 else []
        if self.transform != "none":
            parts = [f"{parts[0] if parts else TITLES[str(self.on)]} {self.transform}{alpha}"]
        parts += [part.replace("-", " ") for part in self._more]
        return ", ".join(parts) or "untransformed"

    @property
    def _more(self) -> list[str]:
        """What sets it apart beside transform and modalities."""
        parts = [] if self.fusion == "concat" else [self.fusion]
        parts += [] if self.normalize in (None, "none") else [str(self.normalize)]
        parts += [f"rate-{rate:g}-{modality}" for modality, rate in self.rates]
        return parts + (["blended"] if self.auxiliary else [])

    def head_config(self, train: EmbeddingSource, classes: Sequence[str], settings: TrainSettings) -> HeadConfig:
        """The head for these embeddings; `ExperimentError` when they lack a modality.

        `pos-scalar` is the paper's 1.5, or the 2 of its authors' code for embeddings of protocol `notebook`.
        """
        for modality in self.modalities:
            if modality not in train.dims:
                raise ExperimentError(
                    f"no training clip has a {modality} embedding: see `alphafuse store info`, or choose the other "
                    "modality alone"
                )
        transform, alpha = self.transform, self.alpha
        if transform == "pos-scalar" and is_notebook(train.recipes):
            transform, alpha = "scale", NOTEBOOK_POS_SCALAR
        return HeadConfig(
            dims={modality: train.dims[modality] for modality in self.modalities},
            classes=tuple(classes),
            transform=transform,
            on=self.on,
            alpha=alpha,
            fusion=self.fusion,
            hidden=settings.hidden,
            dropout=settings.dropout,
            absent=settings.absent,
            normalize=self.normalize or settings.normalize,
            modality_dropout=settings.modality_dropout if len(self.modalities) > 1 else 0.0,
            rates=dict(self.rates) or None,
            auxiliary=dict(self.auxiliary) or None,
        )


def is_notebook(recipes: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether embeddings were made by protocol `notebook`, from their store's recipes."""
    return any(made.get("protocol") == "notebook" for made in recipes.values())


BASELINE = Experiment()


@dataclass(frozen=True)
class SplitResult:
    """How an experiment's heads (one per seed) do on one split.

    Attributes:
        split: "val" or "test".
        clip_ids, groups, labels: of the n clips that were scored.
        dropped: clips left out because they lack a modality.
        ceiling: how many of the n have a label that occurs in training.
        top1, topk: in [0, 1]; loss: cross entropy in nats.
        scores: per clip, (seeds, clips).
    """

    split: str
    clip_ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    dropped: int
    ceiling: Ceiling
    top1: Estimate
    topk: Estimate
    loss: Estimate
    scores: Scores

    @property
    def n(self) -> int:
        """Clips that were scored."""
        return len(self.clip_ids)

    def __repr__(self) -> str:
        return f"SplitResult({self.split}: n={self.n}, top1={self.top1!r}, loss={self.loss!r})"

    def to_json(self) -> dict[str, Any]:
        """What metrics.json holds of a split."""
        return {
            "n": self.n,
            "source_videos": len(set(self.groups)),
            "dropped": self.dropped,
            "reachable_ceiling": {**asdict(self.ceiling), "accuracy": self.ceiling.accuracy},
            "top1": asdict(self.top1),
            f"top{self.scores.k}": asdict(self.topk),
            "loss": asdict(self.loss),
        }


@dataclass(frozen=True)
class RunResult:
    """What `fit` returns and writes.

    Attributes:
        experiment, settings, seeds: what was asked for.
        folder: the run folder.
        splits: "val" and "test" -> results.
        heads: one per seed, in the order of `seeds`.

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

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} top1={result.top1!r} n={result.n}" for name, result in self.splits.items())
        return f"RunResult({self.experiment.title}, {len(self.seeds)} seeds, {figures}, folder={str(self.folder)!r})"


def evaluate_heads(
    heads: Sequence[AlphaFusion], embeddings: EmbeddingSource, *, split: str, train_labels: Collection[str]
) -> SplitResult:
    """Score one experiment's heads on a split.

    Args:
        heads: of one configuration, one per seed.
        embeddings: of the split; clips that the heads can't use are left out and counted.
        split: its name.
        train_labels: labels of the training clips that were used, for the ceiling.

    Raises:
        ExperimentError: no clip of the split has the embeddings that the heads need.
    """
    config = heads[0].config
    usable = usable_clips(embeddings, config)
    if not usable.any():
        raise ExperimentError(f"none of the {len(embeddings)} {split} clips has the embeddings that the head reads")
    kept = embeddings if usable.all() else embeddings.take(usable)
    logits = np.stack([head.predict_logits(kept) for head in heads])  # (seeds, clips, C)
    dropped = int((~usable).sum())
    return evaluate_logits(logits, kept, config.classes, split=split, train_labels=train_labels, dropped=dropped)


def evaluate_logits(
    logits: np.ndarray,
    embeddings: EmbeddingSource,
    classes: Sequence[str],
    *,
    split: str,
    train_labels: Collection[str],
    dropped: int = 0,
) -> SplitResult:
    """Score logits (seeds, clips, C) of one experiment's heads on the clips of `embeddings`; see `evaluate_heads`."""
    scores = score(logits, class_indices(embeddings.labels, classes))
    groups = tuple(embeddings.groups)
    return SplitResult(
        split=split,
        clip_ids=tuple(embeddings.clip_ids),
        groups=groups,
        labels=tuple(embeddings.labels),
        dropped=dropped,
        ceiling=reachable_ceiling(train_labels, embeddings.labels),
        top1=estimate(scores.top1, accuracy_interval(scores.top1, groups)),
        topk=estimate(scores.topk, accuracy_interval(scores.topk, groups)),
        loss=estimate(scores.loss, bootstrap_interval(scores.loss, groups)),
        scores=scores,
    )


def estimate(values: np.ndarray, interval: Interval) -> Estimate:
    """Of values (seeds, clips): their mean, and that of each seed."""
    return Estimate(float(values.mean()), interval, tuple(float(mean) for mean in values.mean(axis=1)))


def seed_range(seeds: int, first_seed: int = 0) -> tuple[int, ...]:
    """`seeds` consecutive seeds; `ExperimentError` for fewer than one."""
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ExperimentError(f"seeds must be a whole number of at least 1, not {seeds!r}")
    return tuple(range(first_seed, first_seed + seeds))


def fit(
    dataset: Dataset,
    experiment: Experiment,
    *,
    seeds: int = 1,
    first_seed: int = 0,
    settings: TrainSettings | None = None,
    run: str | None = None,
    progress: Progress | None = None,
    engine: str = "local",
    address: str | None = None,
) -> RunResult:
    """Train one experiment, score validation and test, and write the run folder.

    Args:
        dataset: whose three splits are extracted.
        experiment: what to fuse, and how.
        seeds, first_seed: one head for each of the seeds first_seed, first_seed + 1, ...
        settings: training settings; the paper's by default.
        run: the run's name; the experiment's by default. An older run of that name is replaced.
        progress: called with the number of newly finished epochs, `seeds * settings.total_epochs` in all.
        engine: who spreads the heads: "local" (this machine), or "ray" (a Ray cluster's nodes); figures don't differ.
        address: of Ray's cluster, such as "auto"; None = what the variable RAY_ADDRESS names, else Ray is started here.

    Raises:
        DatasetError, StoreError: splits that are empty or not extracted.
        ExperimentError: settings that don't fit, a bad name, or a loss that stops being finite.
        ClusterError: an unknown engine, or a Ray cluster that can't be used.

    >>> from alphafuse import AlphaFusion, Dataset, Experiment, fit
    >>> result = fit(Dataset.open("demo"), Experiment("sqrt", on="ast"))
    >>> result.splits["test"]
    SplitResult(test: n=192, top1=0.8... [0.7..., 0.8...], loss=0.6... [0.4..., 0.8...])
    >>> AlphaFusion.from_pretrained(result.folder).config.transform
    'sqrt'
    """
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f'fit takes an Experiment, not {experiment!r}: Experiment("sqrt", on="ast")')
    require_engine(engine)
    settings = settings or TrainSettings()
    chosen = seed_range(seeds, first_seed)
    name = run or experiment.name
    check_run_name(name)
    if name in RESERVED_RUNS:
        raise ExperimentError(f"the run name '{name}' is that of `alphafuse {name}`: choose another --run")
    embeddings = load_embeddings(dataset, settings)
    config = experiment.head_config(embeddings["train"], dataset.classes, settings)
    heads = train_heads(
        embeddings["train"],
        embeddings["val"],
        [config],
        chosen,
        settings=settings,
        progress=progress,
        engine=engine,
        address=address,
    )
    usable = usable_clips(embeddings["train"], config)
    labels = frozenset(compress(embeddings["train"].labels, usable))
    fusions = [trained.head for trained in heads]
    splits = {
        split: evaluate_heads(fusions, embeddings[split], split=split, train_labels=labels) for split in EVALUATED
    }
    result = RunResult(experiment, settings, chosen, dataset.root / "runs" / name, splits, tuple(heads))
    with replaced_run(dataset.root, name) as folder:
        write_json(
            folder / "config.json",
            {
                "kind": "fit",
                "experiment": asdict(experiment),
                "head": config.to_json(),
                **provenance(dataset, embeddings, settings, chosen),
                "clips": {"train": int(usable.sum()), **{split: splits[split].n for split in EVALUATED}},
                "dropped": {**heads[0].dropped, "test": splits["test"].dropped},
            },
        )
        write_json(folder / "metrics.json", {split: result.to_json() for split, result in splits.items()})
        write_csv(folder / "history.csv", history_rows(heads))
        for split in EVALUATED:
            write_csv(folder / f"predictions-{split}.csv", _prediction_rows(splits[split], chosen, dataset.classes))
        save_heads([(trained.seed, trained.head) for trained in heads], folder)
    return result


def load_embeddings(dataset: Dataset, settings: TrainSettings) -> dict[str, EmbeddingSource]:
    """The dataset's three splits; those that the memory for features can't hold stay on disk."""
    memory = memory_bytes(settings, settings.torch_device())
    return dict(dataset.all_embeddings(max_bytes=memory // 2))


def history_rows(heads: Sequence[TrainedHead]) -> Iterator[tuple[object, ...]]:
    """Rows of history.csv, with its header; epochs count from 1."""
    yield ("seed", "epoch", "train_loss", "val_loss", "val_accuracy")
    for trained in heads:
        columns = (trained.history.train_loss, trained.history.val_loss, trained.history.val_accuracy)
        for epoch, row in enumerate(zip(*columns, strict=True), start=1):
            yield (trained.seed, epoch, *(float(value) for value in row))


class _WithHeads(Protocol):
    @property
    def experiment(self) -> Experiment: ...
    @property
    def heads(self) -> Sequence[TrainedHead]: ...


def load_embeddings_of(dataset: Dataset, split: str) -> EmbeddingSource:
    """One split, on disk if half of the free memory can't hold it."""
    return dataset.embeddings(split, max_bytes=free_memory_bytes() // 2)


def experiment_history(rows: Sequence[_WithHeads]) -> Iterator[tuple[object, ...]]:
    """Rows of a history.csv of several experiments, with its header: the experiment's name, then `history_rows`."""
    for position, row in enumerate(rows):
        header, *lines = history_rows(row.heads)
        if not position:
            yield ("experiment", *header)
        yield from ((row.experiment.name, *columns) for columns in lines)


def _prediction_rows(result: SplitResult, seeds: Sequence[int], classes: Sequence[str]) -> Iterator[tuple[object, ...]]:
    yield ("clip_id", "group", "label", "seed", "predicted", "correct", "loss")
    for index, seed in enumerate(seeds):
        for i, clip_id in enumerate(result.clip_ids):
            predicted = classes[result.scores.predicted[index, i]]
            correct, loss = int(result.scores.top1[index, i]), float(result.scores.loss[index, i])
            yield (clip_id, result.groups[i], result.labels[i], seed, predicted, correct, loss)


def provenance(
    dataset: Dataset, embeddings: Mapping[str, EmbeddingSource], settings: TrainSettings, seeds: Sequence[int]
) -> dict[str, Any]:
    """What made a run, apart from the experiment: for config.json."""
    return {
        "dataset": {"name": dataset.name, "source": dataset.source},
        "classes": list(dataset.classes),
        "embeddings": {modality: dict(made) for modality, made in embeddings["train"].recipes.items()},
        "encoders": dataset.store("train").provenance().get("encoders", {}),
        "settings": settings.to_json(),
        "seeds": list(seeds),
        "versions": {
            "alphafuse": version("alphafuse"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def check_run_name(name: str) -> None:
    """Raise `ExperimentError` unless the name can be a folder's."""
    if not re.fullmatch(r"[\w][\w.+=@-]{0,99}", name):
        raise ExperimentError(
            f"'{name}' can't name a run: use up to 100 letters, digits, '-', '_' and '.', such as sqrt-ast"
        )


@contextmanager
def replaced_run(root: Path, name: str) -> Iterator[Path]:
    """A temporary folder that becomes `<root>/runs/<name>` when the block ends well, and disappears when it doesn't.

    An older run stays until then; a folder can't be exchanged in one step, so between two renames there is none, and
    what interrupts them puts the older one back.

    Raises:
        ExperimentError: a bad name, or a folder that can't be written.
    """
    check_run_name(name)
    target = root / "runs" / name
    temporary = root / "runs" / f".{name}.{uuid.uuid4().hex[:8]}.partial"
    outgoing = temporary.with_suffix(".old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            target.rename(outgoing)
        temporary.rename(target)
    except OSError as error:
        raise ExperimentError(f"can't write the run {target}: {error.strerror or error}") from error
    finally:
        if outgoing.exists() and not target.exists():
            outgoing.rename(target)
        for folder in (temporary, outgoing):
            shutil.rmtree(folder, ignore_errors=True)


def save_heads(heads: Iterable[tuple[int, AlphaFusion]], folder: Path) -> None:
    """Write an experiment's heads, each with its seed: the first to head/, the others to heads/seed-<n>/."""
    for position, (seed, head) in enumerate(heads):
        head.save_pretrained(folder / "heads" / f"seed-{seed}" if position else folder / "head")


def load_heads(folder: Path) -> list[AlphaFusion]:
    """All heads that `save_heads` wrote to a folder, the first seed's first."""
    others = sorted((Path(folder) / "heads").glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
    return [AlphaFusion.from_pretrained(path) for path in (Path(folder), *others)]
