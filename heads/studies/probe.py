"""The grid of a probe: linear and MLP heads, learning rates and weight decays, among which validation clips choose.

Embeddings differ in scale, and so in the learning rate that suits them. At one rate for all, a comparison of embeddings
is partly one of how well that rate suits each. A probe gives each experiment its own choice from the same grid.

This is the practice of HEAR (Turian et al. 2022, github.com/hearbenchmark/hear-eval-kit,
heareval/predictions/task_predictions.py): 16 points (1 or 2 hidden layers of 1,024, learning rates 3.2e-3, 1e-3, 3.2e-4
and 1e-4, two initialisations; no weight decay), of which 8 are drawn at random (`--grid-points` of its runner), each
trained once; the best on validation is scored on test.

Here nothing is drawn: all of `HEADS` x `LEARNING_RATES` x `WEIGHT_DECAYS` = 18 points are trained, with one seed each,
and then the best of them with all seeds. A probe of n seeds trains 18 + n heads where other runs train n. The paper's
own settings are one of the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.training.settings import TrainSettings

HEADS = ("linear", "MLP")
LEARNING_RATES = (1e-4, 1e-3, 1e-2)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-2)
CHOSEN = ("hidden", "learning_rate", "weight_decay")  # the settings that a probe chooses


@dataclass(frozen=True)
class ProbePoint:
    """One point of the grid and its validation figures: accuracy in [0, 1], loss in nats, of one seed."""

    settings: TrainSettings
    top1: float
    loss: float

    def to_json(self) -> dict[str, Any]:
        """The chosen settings and both figures, json-able."""
        settings = self.settings.to_json()
        return {**{name: settings[name] for name in CHOSEN}, "val_top1": self.top1, "val_loss": self.loss}


@dataclass(frozen=True)
class Probe:
    """What a probe tried for one experiment, and what it chose.

    Attributes:
        points: all points that were tried, in the order of the grid.
        best: the chosen one: highest validation accuracy, then lowest loss, then the first.
        clips: number of validation clips that chose.
        seed: seed of the heads of the points.

    >>> from alphafuse import Dataset, Experiment, TrainSettings, fit
    >>> quick = TrainSettings(epochs=1, hidden=(16,))  # only for speed
    >>> probe = fit(Dataset.open("demo"), Experiment(streams="ast"), settings=quick, probe=True, run="probed").probe
    >>> len(probe.points), probe.clips, probe.best.top1 == max(point.top1 for point in probe.points)
    (18, 26, True)
    >>> probe.sentence
    '..., learning rate ..., weight decay ..., the best of 18 on 26 validation clips'
    """

    points: tuple[ProbePoint, ...]
    best: ProbePoint
    clips: int
    seed: int

    def __repr__(self) -> str:
        return f"Probe({self.sentence})"

    @property
    def settings(self) -> TrainSettings:
        """The chosen training settings."""
        return self.best.settings

    @property
    def sentence(self) -> str:
        """What was chosen, from how many points, on how many clips."""
        return sentence_of(self.settings, len(self.points), self.clips)

    def to_json(self) -> dict[str, Any]:
        """The choice and all points, json-able."""
        return {
            "chosen": self.best.to_json(),
            "val_clips": self.clips,
            "seed": self.seed,
            "points": [point.to_json() for point in self.points],
        }


def probe_grid(settings: TrainSettings) -> tuple[TrainSettings, ...]:
    """Return the settings of all points: a linear head and one with the hidden layers of `settings`, which stay else.

    Raises:
        ExperimentError: `settings` has a learning rate or weight decay of its own, which the probe would not use.
    """
    for name in ("learning_rate", "weight_decay"):
        if getattr(settings, name) != getattr(TrainSettings(), name):
            option = f"--{name.replace('_', '-')}"
            raise ExperimentError(f"a probe chooses learning rate and weight decay itself: leave out {option}")
    heads = dict.fromkeys(((), settings.hidden))  # with linear heads only, one of them
    return tuple(
        replace(settings, hidden=hidden, learning_rate=rate, weight_decay=decay)
        for hidden, rate, decay in product(heads, LEARNING_RATES, WEIGHT_DECAYS)
    )


def points_for(experiment: Experiment, grid: Sequence[TrainSettings]) -> list[TrainSettings]:
    """Return the points that go with an experiment: learning rates per stream need a weight decay of 0."""
    return [point for point in grid if not (experiment.rates and point.weight_decay)]


def grid_json(settings: TrainSettings) -> dict[str, Any]:
    """Return what the grid of these settings holds, json-able."""
    return {
        "hidden": [list(hidden) for hidden in dict.fromkeys(((), settings.hidden))],
        "learning_rate": list(LEARNING_RATES),
        "weight_decay": list(WEIGHT_DECAYS),
    }


def settings_before(config: Mapping[str, Any]) -> TrainSettings:
    """Return the training settings that a run was called with, from its config.json: of a probe, those before it."""
    settings = TrainSettings.from_json(config["settings"])
    if not config.get("probe"):
        return settings
    usual = TrainSettings()
    hidden = tuple(config["probe"]["grid"]["hidden"][-1])
    return replace(settings, hidden=hidden, learning_rate=usual.learning_rate, weight_decay=usual.weight_decay)


def sentence_of(settings: TrainSettings, points: int, clips: int) -> str:
    """Return "linear, learning rate 1e-3, weight decay 1e-4, the best of 18 on 26 validation clips"."""
    head, rate, decay = names_of(settings)
    on = "one validation clip" if clips == 1 else f"{clips:,} validation clips"
    return f"{head}, learning rate {rate}, weight decay {decay}, the best of {points} on {on}"


def names_of(settings: TrainSettings) -> tuple[str, str, str]:
    """Return head, learning rate and weight decay as shown to users: ("linear", "1e-3", "1e-4")."""
    return HEADS[bool(settings.hidden)], _power(settings.learning_rate), _power(settings.weight_decay)


def _power(number: float) -> str:
    """Return a power of ten as "1e-3", and zero as "0"."""
    return f"{number:.0e}".replace("e-0", "e-") if number else "0"
