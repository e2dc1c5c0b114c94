"""Encoders that are Python code: a stream's encoder "package.module:name" is a factory or a plain function.

A factory has a first parameter named `device`; it returns a `CustomEncoder`:

    def clip_vit(device, **options): ...       # options: those of the stream, as text

Anything else that can be called is a plain function of one clip, (frames, height, width, 3) uint8 as decoded with the
stream's option `frames`, or (samples,) float32 with its option `rate` (and `seconds`); it returns (dim,):

    def mean_colour(frames): ...               # --stream colour=mine:mean_colour,frames=8

The module is looked for in the current folder first, as with `python -m`. On a CPU several threads call the code at
once, and never with gradients. An exception for one clip is recorded as that clip's failure.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from alphafuse.data.streams import Stream
from alphafuse.errors import ClipError, ClusterError, EncoderError, unknown
from alphafuse.extract.decoding.specs import AudioSpec, FrameSpec, Spec
from alphafuse.system.files import one_line

from .encoder import Encoder, Placement, example_input

WEIGHTS = "weights_sha256"
MOST = {"frames": 1024, "rate": 384_000, "seconds": 3600}  # of the options of a plain function


class CustomEncoder(Protocol):
    """What a factory `name(device, **options)` returns: an encoder of one's own, of any library.

    Attributes:
        spec: the frames or the waveform that decode workers prepare.
        dim: length of an embedding.
        recipe: all that decides the numbers, json-able; `weights_sha256`, a checksum of the weights, is required.

    >>> import numpy as np
    >>> from alphafuse import AudioSpec, CustomEncoder
    >>> class Loudness:
    ...     spec, dim, recipe = AudioSpec(rate=8000), 2, {"weights_sha256": "none", "version": 1}
    ...
    ...     def embed(self, windows):
    ...         return np.array([[np.abs(samples).mean(), samples.std()] for samples in windows], np.float32)
    >>> def loudness(device) -> CustomEncoder:  # --stream loudness=module:loudness,medium=audio
    ...     return Loudness()
    >>> loudness("cpu").embed([np.ones(4, np.float32)])
    array([[1., 0.]], dtype=float32)
    """

    spec: Spec
    dim: int
    recipe: Mapping[str, Any]

    def embed(self, windows: Sequence[np.ndarray]) -> np.ndarray:
        """Return (windows, dim) float32; each window is (frames, height, width, 3) uint8 or (samples,) float32."""


def load_code(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load the encoder "package.module:name" of a stream, and try it on black frames or silence. This runs code.

    Its precision is its own: the encoder's placement says "fp32".

    Raises:
        EncoderError: there is no such code, it isn't an encoder of the stream's medium, or it fails.
    """
    placement = replace(placement or Placement(), precision="fp32")
    folder = str(Path.cwd())
    with _importable(folder):
        code = _load(stream, str(placement.device))
        model = CodeModel(stream, code, placement.device, folder)
    return Encoder(
        stream=stream,
        revision="",
        weights_sha256=code.weights_sha256,
        dim=code.dim,
        spec=code.spec,
        prepare=_unprepared,
        model=model,
        placement=placement,
        details={"family": "code", **code.details},
    )


@dataclass(frozen=True)
class _Code:
    """Code that was loaded: `embed` and other fields as in `CustomEncoder` and `Encoder`."""

    spec: Spec
    dim: int
    weights_sha256: str
    details: Mapping[str, Any]
    embed: Callable[[Sequence[np.ndarray]], np.ndarray]
    is_factory: bool


class CodeModel:
    """Runs the code of a stream. It is pickled as its name: another process or machine imports it from there."""

    def __init__(self, stream: Stream, code: _Code, device: torch.device, folder: str) -> None:
        """Take code that was loaded for a device while `folder` was the current one."""
        self._stream, self._code, self._device, self._folder = stream, code, device, folder

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_again, (self._stream, self._device, self._folder, self._code.weights_sha256)

    def to(self, device: torch.device) -> CodeModel:
        """Return the same code for another device; plain functions know no devices."""
        if device == self._device or not self._code.is_factory:
            return self
        return _load_again(self._stream, device, self._folder, self._code.weights_sha256)

    def __call__(self, windows: Sequence[np.ndarray]) -> torch.Tensor:
        """Return (windows, dim) float32; raise `ClipError` if the code fails or returns another shape."""
        try:
            made = _array(self._code.embed(windows))
        except (ClipError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ClipError(f"{self._stream.encoder} raised {_described(error)}") from error
        return torch.from_numpy(_shaped(made, (len(windows), self._code.dim)))


# ------------------------------------------------------------------------------------------------------------- loading


def _load(stream: Stream, device: str) -> _Code:
    """Import the code of a stream, and try it: imports inside of functions look for the same folder first."""
    module, found = _find(stream)
    options = {name: value for name, value in stream.options.items() if name != "precision"}
    if stream.options.get("precision", "fp32") != "fp32":
        raise _error(stream, "decides on its precision itself: leave out the option precision")
    try:
        parameters = list(inspect.signature(found).parameters)
    except (TypeError, ValueError):  # of a library in C
        parameters = []
    if parameters[:1] == ["device"]:
        return _from_factory(stream, found, device, options)
    return _from_function(stream, found, module, options)


def _find(stream: Stream) -> tuple[Any, Any]:
    """Import the module of a stream's code; return it, and what the name stands for."""
    place, _, name = stream.encoder.partition(":")
    try:
        module = import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise _error(stream, f"can't be imported ({_described(error)}): install what it needs") from None
        raise _error(
            stream,
            f"can't be found: there is no module '{error.name}' in the current folder {Path.cwd()} or on Python's "
            "path: change the folder, install the package, or correct the name",
        ) from None
    except (Exception, SystemExit) as error:
        raise _error(stream, f"can't be imported ({_described(error)}): mend the module") from error
    if not hasattr(module, name):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise _error(stream, f"can't be found: {unknown('name', name, known)}")
    if not callable(getattr(module, name)):
        raise _error(
            stream,
            f"is a {type(getattr(module, name)).__name__}, which can't be called: name a factory (device, **options), "
            "or a function of frames or samples",
        )
    return module, getattr(module, name)


def _from_factory(stream: Stream, factory: Callable[..., Any], device: str, options: Mapping[str, str]) -> _Code:
    try:
        inspect.signature(factory).bind(device, **options)
    except TypeError as error:
        raise _error(stream, f"doesn't take the stream's options ({', '.join(options) or 'none'}): {error}") from None
    try:
        made = factory(device, **options)
    except Exception as error:
        raise _error(stream, f"raised {_described(error)}: mend it, or the stream's options") from error
    lacking = [name for name in ("spec", "dim", "recipe", "embed") if not hasattr(made, name)]
    if lacking:
        raise _error(
            stream, f"returns a {type(made).__name__} without {', '.join(lacking)}: see `alphafuse.CustomEncoder`"
        )
    if type(made.spec) not in (FrameSpec, AudioSpec):  # exactly: decode workers import no code of one's own
        raise _error(stream, f"has a {type(made.spec).__name__} as spec: give an alphafuse.FrameSpec or AudioSpec")
    medium = "audio" if isinstance(made.spec, AudioSpec) else "video"
    if medium != stream.medium:
        raise _error(stream, f"embeds {medium}, and the stream is {stream.medium}: give the option medium={medium}")
    if isinstance(made.dim, bool) or not isinstance(made.dim, int | np.integer) or made.dim < 1:
        raise _error(stream, f"has dim {one_line(repr(made.dim), 40)}: it must be a whole number of at least 1")
    try:
        recipe = json.loads(json.dumps(dict(made.recipe), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise _error(stream, f"has a recipe that json can't hold ({one_line(error)}): use plain values") from None
    _try(lambda windows: _shaped(_array(made.embed(windows)), (1, made.dim)), stream, made.spec)
    weights = recipe.pop(WEIGHTS, None)
    if not isinstance(weights, str) or not weights:
        raise _error(stream, f"has a recipe without '{WEIGHTS}': give the sha256 of the weights' file, as text")
    return _Code(made.spec, int(made.dim), weights, {f"code.{k}": v for k, v in recipe.items()}, made.embed, True)


def _from_function(stream: Stream, function: Callable[..., Any], module: Any, options: Mapping[str, str]) -> _Code:
    known = ("frames",) if stream.medium == "video" else ("rate", "seconds")
    for option in options:
        if option not in known:
            raise _error(stream, f"is a plain function of {stream.medium}: {unknown('option', option, known)}")
    if known[0] not in options:
        raise _error(stream, f"is a plain function of {stream.medium}, which needs the stream's option {known[0]}=N")
    number = {option: _number(stream, option, value) for option, value in options.items()}
    if stream.medium == "video":
        spec: Spec = FrameSpec(
            number["frames"], shortest_edge=0, crop=(0, 0), scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        )
    else:
        spec = AudioSpec(number["rate"], number["seconds"] * number["rate"] if "seconds" in number else None)

    def embed_one(windows: Sequence[np.ndarray]) -> np.ndarray:
        return _shaped(_array(function(windows[0])), ("dim",))

    def embed(windows: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([_shaped(_array(function(window)), (dim,)) for window in windows])

    dim = len(_try(embed_one, stream, spec))
    details = {"function": stream.encoder.partition(":")[2], "hashed": "source"}
    return _Code(spec, dim, _source_sha256(stream, function, module), details, embed, False)


def _load_again(stream: Stream, device: torch.device, folder: str, weights_sha256: str) -> CodeModel:
    """Load the same code in another process, perhaps on another machine, or for another device.

    Raises:
        ClusterError: this machine lacks the code, or has another version of it.
    """
    try:
        with _importable(folder):
            code = _load(stream, str(device))
    except EncoderError as error:
        raise ClusterError(
            f"machine {socket.gethostname()} lacks the code of a stream, or can't run it ({error}); every machine of "
            "the cluster needs it"
        ) from None
    if code.weights_sha256 != weights_sha256:
        raise ClusterError(
            f"machine {socket.gethostname()} has another version of {stream.encoder} (sha256 "
            f"{code.weights_sha256[:12]}, not {weights_sha256[:12]}): install the same on every machine"
        )
    return CodeModel(stream, code, device, folder)


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Look for modules in a folder first; only within the block, because child processes inherit the path."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


# -------------------------------------------------------------------------------------------------------------- values


def _try(embed: Callable[[Sequence[np.ndarray]], Any], stream: Stream, spec: Spec) -> Any:
    """Return the embedding of black frames or silence."""
    window = example_input(spec)
    what = "samples of silence" if isinstance(spec, AudioSpec) else "black frames"
    try:
        with torch.inference_mode():
            return embed([window])
    except Exception as error:
        why = str(error) if isinstance(error, EncoderError) else f"it raised {_described(error)}"
        raise _error(stream, f"can't embed {what} of shape {window.shape}: {why}: mend it") from error


def _array(made: Any) -> np.ndarray:
    """Return an array of numbers, of any library, as float32."""
    if isinstance(made, torch.Tensor):
        made = made.detach().float().cpu().numpy()
    array = np.asarray(made)
    if array.dtype.kind not in "fiub":
        raise ClipError(f"the code returned {one_line(repr(made), 60)} instead of an array of numbers")
    return np.array(array, np.float32, order="C")  # a copy: torch can't share one that is read-only


def _shaped(made: np.ndarray, expected: tuple[int | str, ...]) -> np.ndarray:
    """Return the array if it has this shape; a text stands for any length."""
    wrong = (isinstance(b, int) and a != b for a, b in zip(made.shape, expected, strict=False))
    if made.ndim != len(expected) or any(wrong):
        wanted = str(expected).replace("'", "")
        raise ClipError(f"the code returned an array of shape {made.shape} instead of {wanted}")
    return made


def _unprepared(windows: Sequence[np.ndarray], *, device: torch.device) -> Sequence[np.ndarray]:
    return windows


def _number(stream: Stream, option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST[option]):
        raise EncoderError(
            f"stream {stream.name}: option {option} must be a whole number from 1 to {MOST[option]}, not "
            f"'{one_line(text, 40)}'"
        )
    return int(text)


def _source_sha256(stream: Stream, function: Callable[..., Any], module: Any) -> str:
    """Return a checksum of the file of the named module, and of the function's own if that is another."""
    modules = (module, sys.modules.get(getattr(function, "__module__", None) or ""))
    files = {file for one in modules if (file := getattr(one, "__file__", None))}
    if not files:
        raise _error(stream, "has no source file, whose checksum its recipe needs: write a function that calls it")
    digests = sorted(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files)
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _described(error: BaseException) -> str:
    return one_line(" ".join(f"{type(error).__name__}: {error}".split()), 200)


def _error(stream: Stream, text: str) -> EncoderError:
    return EncoderError(f"stream {stream.name}: {stream.encoder} {text}")
