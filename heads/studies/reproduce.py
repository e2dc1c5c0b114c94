"""The command that reproduces a run, from its config.json."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphafuse.heads.model.config import BASELINE, Experiment
from alphafuse.heads.training.settings import TrainSettings

from .probe import settings_before


def command_of(config: Mapping[str, Any], name: str, root: Path) -> str:
    """Return the shell command that reproduces a run, or a line of Python if the command line lacks an option."""
    if config["kind"] == "curve":
        return _curve_command(config["curve"], root)
    kind, seeds = config["kind"], [int(seed) for seed in config["seeds"]]
    settings, probe = settings_before(config), bool(config.get("probe"))
    words = ["alphafuse", kind]
    if kind == "fit":
        experiment = Experiment(**config["experiment"])
        if experiment.rates or experiment.auxiliary or experiment.normalize:
            arguments = f"alphafuse.Dataset.open({str(root)!r}), alphafuse.{experiment!r}, seeds={len(seeds)}, "
            arguments += f"first_seed={seeds[0]}, settings=alphafuse.{settings!r}, "
            arguments += f"probe=True, run={name!r}" if probe else f"run={name!r}"
            return f"alphafuse.fit({arguments})"
        words += _experiment_options(experiment)
    elif kind == "sweep":
        sweep = config["sweep"]
        alphas = ",".join(f"{alpha:g}" for alpha in sweep["alphas"])
        words += ["--on", ",".join(sweep["on"]), f"--alpha={alphas}"]  # "=", because "-1" alone looks like an option
        words += [] if sweep["transform"] == "scale" else ["--transform", sweep["transform"]]
    elif kind == "weigh":
        return shlex.join([*words, *_weigh_options(config["weigh"], name), "--root", str(root)])
    elif kind == "contribute":
        return shlex.join([*words, *_contribute_options(config), "--root", str(root)])
    words += ["--seeds", str(len(seeds))] + (["--first-seed", str(seeds[0])] if seeds[0] else [])
    words += ["--probe"] if probe else []
    words += _training_options(settings)
    if kind in ("fit", "sweep"):
        words += ["--run", name]
    return shlex.join([*words, "--root", str(root)])


def _curve_command(curve: Mapping[str, Any], root: Path) -> str:
    words = ["alphafuse", "curve", "--stream", ",".join(curve["streams"]), "--draws", str(curve["draws"])]
    if curve["preset"]:
        words += ["--preset", curve["preset"]]
    else:
        words += ["--sizes", ",".join(map(str, curve["sizes"]))]
        words += ["--seed", str(curve["seed"])] if curve["seed"] else []
    return shlex.join([*words, "--root", str(root)])


def _experiment_options(experiment: Experiment) -> list[str]:
    words = []
    if experiment.transform != "none":
        words += ["--transform", experiment.transform, "--on", str(experiment.on)]
    if experiment.alpha is not None:
        words.append(f"--alpha={experiment.alpha:g}")
    if experiment.fusion != BASELINE.fusion:
        words += ["--fusion", experiment.fusion]
    if not experiment.reads_all:
        words += ["--stream", ",".join(experiment.streams)]
    return words


def _weigh_options(weigh: Mapping[str, Any], name: str) -> list[str]:
    words = ["--stream", ",".join(weigh["streams"])] if weigh["streams"] else []
    words += ["--folds", str(weigh["folds"]), "--seed", str(weigh["seed"])]
    words += ["--all"] if weigh["everything"] else []
    words += ["--vggsounder"] if weigh["vggsounder"] else []
    return [*words, "--run", name]


def _contribute_options(config: Mapping[str, Any]) -> list[str]:
    given, words = config["contribute"], []
    if given["head"] != "closed":
        words += ["--head", given["head"], *_training_options(TrainSettings.from_json(config["settings"]))]
    if given["run"]:
        words += ["--run", given["run"]]
    words += ["--stream", ",".join(given["streams"]), "--folds", str(given["folds"])]
    return [*words, "--refits", str(given["refits"]), "--seed", str(config["seeds"][0])]


def _training_options(settings: TrainSettings) -> list[str]:
    """Return the options of the settings that differ from the defaults."""
    words = []
    given, defaults = settings.to_json(), TrainSettings().to_json()
    for name, value in given.items():
        if value != defaults[name]:
            text = ",".join(map(str, value)) or "linear" if isinstance(value, list) else f"{value}"
            words += [f"--{name.replace('_', '-')}", text]
    return words
