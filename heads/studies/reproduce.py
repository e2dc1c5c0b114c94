"""The command that makes a run again, from its config.json."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphafuse.heads.model.config import BASELINE, Experiment
from alphafuse.heads.training.settings import TrainSettings


def command_of(config: Mapping[str, Any], name: str, root: Path) -> str:
    """What makes a run again: a line for the shell, or of Python where the command line can't say it."""
    kind, seeds = config["kind"], [int(seed) for seed in config["seeds"]]
    settings = TrainSettings.from_json(config["settings"])
    words = ["alphafuse", kind]
    if kind == "fit":
        experiment = Experiment(**config["experiment"])
        if experiment.rates or experiment.auxiliary or experiment.normalize:
            call = f"alphafuse.fit(alphafuse.Dataset.open({str(root)!r}), alphafuse.{experiment!r}, "
            more = f"seeds={len(seeds)}, first_seed={seeds[0]}, settings=alphafuse.{settings!r}, run={name!r})"
            return call + more
        words += _experiment_options(experiment)
    elif kind == "sweep":
        sweep = config["sweep"]
        alphas = ",".join(f"{alpha:g}" for alpha in sweep["alphas"])
        words += ["--on", ",".join(sweep["on"]), f"--alpha={alphas}"]  # with "=", for -1 would look like an option
        words += [] if sweep["transform"] == "scale" else ["--transform", sweep["transform"]]
    words += ["--seeds", str(len(seeds))] + (["--first-seed", str(seeds[0])] if seeds[0] else [])
    words += _training_options(settings)
    if kind in ("fit", "sweep"):
        words += ["--run", name]
    return shlex.join([*words, "--root", str(root)])


def _experiment_options(experiment: Experiment) -> list[str]:
    words = []
    if experiment.transform != "none":
        words += ["--transform", experiment.transform, "--on", str(experiment.on)]
    if experiment.alpha is not None:
        words.append(f"--alpha={experiment.alpha:g}")
    if experiment.fusion != BASELINE.fusion:
        words += ["--fusion", experiment.fusion]
    if experiment.modalities != BASELINE.modalities:
        words += ["--modalities", ",".join(experiment.modalities)]
    return words


def _training_options(settings: TrainSettings) -> list[str]:
    """The options of those settings that aren't the defaults."""
    words = []
    given, usual = settings.to_json(), TrainSettings().to_json()
    for name, value in given.items():
        if value != usual[name]:
            text = ",".join(map(str, value)) or "linear" if isinstance(value, list) else f"{value}"
            words += [f"--{name.replace('_', '-')}", text]
    return words
