"""Every error that a user can cause. Its message is one line: what is wrong, why, and the command that fixes it.

    AlphafuseError
    ├── DatasetError             a csv, a folder of clips or a root can't be used
    │   └── EmptySplitError      a split has no clip, or no usable embedding
    ├── DecodeError              a clip's file can't be decoded into frames or a waveform
    ├── DeviceError              PyTorch doesn't know the device, or this machine doesn't have it
    ├── EncoderError             an encoder can't be loaded, or doesn't embed what the stream needs
    │   ├── ClipError            an encoder can't embed one clip
    │   └── CheckpointError      an original .pyth/.pth file can't be converted
    ├── StoreError               an embedding store can't be read or written
    │   └── RecipeMismatchError  its shards were made with another recipe than the one asked for
    ├── ClusterError             Ray isn't installed, no cluster answers, or it can't do what is asked
    └── ExperimentError          a transform, fusion, run or head setting doesn't exist or doesn't fit
        └── EstimatorError       the same in `heads.estimator`; also a ValueError, as scikit-learn expects

The command line prints the message and exits with code 2. In Python, catch the class.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AlphafuseError(Exception):
    """Base class of all errors that a user can cause. The message is one line.

    >>> import alphafuse
    >>> try:
    ...     alphafuse.Dataset.open("nowhere")
    ... except alphafuse.AlphafuseError as error:
    ...     print(error)
    no dataset root at 'nowhere' (it has no dataset.json): make one with ...
    """


class DatasetError(AlphafuseError):
    """A csv, a folder of clips or a dataset root can't be used."""


class EmptySplitError(DatasetError):
    """A split has no clip, or no usable embedding."""


class DecodeError(AlphafuseError):
    """A clip's file can't be decoded into frames or a waveform. The message is stored as the clip's failure."""


class DeviceError(AlphafuseError):
    """PyTorch doesn't know the device, or this machine doesn't have it."""


class EncoderError(AlphafuseError):
    """An encoder can't be loaded, or doesn't embed what the stream needs."""


class ClipError(EncoderError):
    """An encoder can't embed one clip. The message is stored as the clip's failure; other clips aren't affected."""


class CheckpointError(EncoderError):
    """An original .pyth/.pth checkpoint can't be converted."""


class StoreError(AlphafuseError):
    """An embedding store can't be read or written."""


class RecipeMismatchError(StoreError):
    """The shards of a store were made with another recipe than the one asked for."""


class ClusterError(AlphafuseError):
    """Ray isn't installed, no cluster answers, or it can't do what is asked."""


class ExperimentError(AlphafuseError):
    """A transform, fusion, run or head setting doesn't exist or doesn't fit."""


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """Return the message for a name that isn't in a list: the name, the closest match and the choices.

    >>> unknown("transform", "sqr", ["none", "sqrt"])
    "unknown transform 'sqr' (did you mean 'sqrt'?): choose from none, sqrt"
    """
    names = list(known)
    near = get_close_matches(given, names, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    listed = ", ".join(names) if len(names) <= 30 else f"{len(names)} names, such as {', '.join(names[:3])}"
    return f"unknown {kind} '{given}'{hint}: choose from {listed}"
