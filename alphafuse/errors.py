"""Every error a user can cause, as one line: what is wrong, why, and the command that mends it.

    AlphafuseError
    ├── DatasetError        a csv, a folder of clips or a root that can't be used
    │   └── EmptySplitError a split without a clip (or without a usable embedding)
    ├── DecodeError         one clip's file can't be turned into frames or a waveform
    ├── DeviceError         a device that PyTorch doesn't know, or that this machine doesn't have
    ├── EncoderError       a TimeSformer or AST that can't be loaded, or isn't one
    │   └── CheckpointError an original .pyth/.pth file that can't be converted
    ├── StoreError          an embedding store that can't be read or written
    │   └── RecipeMismatchError  shards made under other settings than asked for
    ├── ClusterError        Ray that isn't there, or a cluster that can't do what is asked
    └── ExperimentError     a transform, fusion, run or setting that doesn't exist or doesn't fit
        └── EstimatorError  the same in `heads.estimator`, where it is a ValueError too, as scikit-learn asks

The command line prints the message and exits with code 2; Python callers catch the class.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AlphafuseError(Exception):
    """Base of all errors above; its message is one line for people.

    >>> import alphafuse
    >>> try:
    ...     alphafuse.Dataset.open("nowhere")
    ... except alphafuse.AlphafuseError as error:
    ...     print(error)
    no dataset root at 'nowhere' (it has no dataset.json): make one with ...
    """


class DatasetError(AlphafuseError):
    """A csv, a folder of clips or a dataset root that can't be used."""


class EmptySplitError(DatasetError):
    """A split without a clip, or without a usable embedding."""


class DecodeError(AlphafuseError):
    """One clip's file can't be turned into frames or a waveform; its message is the recorded reason."""


class DeviceError(AlphafuseError):
    """A device that PyTorch doesn't know, or that this machine doesn't have."""


class EncoderError(AlphafuseError):
    """A TimeSformer or AST that can't be loaded, or that isn't one."""


class CheckpointError(EncoderError):
    """An original .pyth/.pth checkpoint that can't be converted."""


class StoreError(AlphafuseError):
    """An embedding store that can't be read or written."""


class RecipeMismatchError(StoreError):
    """Shards made under other settings than the ones asked for."""


class ClusterError(AlphafuseError):
    """Ray isn't installed, no cluster answers, or it can't do what is asked of it."""


class ExperimentError(AlphafuseError):
    """A transform, fusion, run or head setting that doesn't exist or doesn't fit."""


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """Message for a name that isn't in a list: names the value, a near match and all choices.

    >>> unknown("transform", "sqr", ["none", "sqrt"])
    "unknown transform 'sqr' (did you mean 'sqrt'?): choose from none, sqrt"
    """
    names = list(known)
    near = get_close_matches(given, names, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    listed = ", ".join(names) if len(names) <= 30 else f"{len(names)} names, such as {', '.join(names[:3])}"
    return f"unknown {kind} '{given}'{hint}: choose from {listed}"
