"""Read a published file without running code in it, and check its tensors before they are converted.

    file -> its first bytes -> weights-only load -> tensors by name, without prefixes (`read_source`)
         -> all expected names, no unknown ones (`check_names`) -> consistent shapes, finite numbers (`check_tensors`)

A file that is refused raises `CheckpointError` with one line: which file, what is wrong, and what to do.
"""

from __future__ import annotations

import hashlib
import pickletools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alphafuse.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
Shape = tuple[int, ...]

AS_PUBLISHED = "pass the file as published"
LONGEST_NAME = 200  # characters; published names have up to 40
_WEIGHTS_KEYS = ("model_state", "state_dict", "model")  # the keys of the original's loader, and of plain state dicts
_PREFIXES = ("module.", "model.")  # DataParallel's, and TimeSformer's wrapper around its VisionTransformer


@dataclass(frozen=True)
class Source:
    """The content of a checkpoint file.

    Attributes:
        path: the file.
        sha256: the sha256 of its contents.
        tensors: tensors by name, without `module.` and `model.`, in the file's order.
        beside: other entries of the file, such as `optimizer_state (346 tensors)`.
    """

    path: Path
    sha256: str
    tensors: Tensors
    beside: tuple[str, ...]


def read_source(path: Path) -> Source:
    """Read a checkpoint without running code in it.

    Raises:
        CheckpointError: the file doesn't exist, isn't a checkpoint, is damaged, would run code, or holds no model.
    """
    _check_first_bytes(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} but a checkpoint holds tensors by name: {AS_PUBLISHED}"
        )
    key = next((key for key in _WEIGHTS_KEYS if isinstance(content.get(key), Mapping)), None)
    tensors: Tensors = {}
    for name, value in (content if key is None else content[key]).items():
        bare = _bare_name(path, name)
        if bare in tensors:
            raise CheckpointError(
                f"{path} holds two tensors named {bare} (without prefixes), so it holds more than one model: "
                f"{AS_PUBLISHED}"
            )
        tensors[bare] = _plain_tensor(path, bare, value, content)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: {AS_PUBLISHED}")
    beside = () if key is None else tuple(_describe_entry(k, v) for k, v in content.items() if k != key)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Source(path, sha256, tensors, beside)


# ------------------------------------------------------------------------------------- loading, weights only


def _check_first_bytes(path: Path) -> None:
    """Raise CheckpointError with the kind of the file unless `torch.save` wrote it."""
    try:
        if path.is_dir():
            raise CheckpointError(
                f"{path} is a folder: pass the original .pyth or .pth file; HuggingFace folders need no conversion"
            )
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"no such file: {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    if start.startswith((b"PK\x03\x04", b"\x80")):  # zip since torch 1.6, a pickle before
        return
    if not start:
        what = "is empty: download it again"
    elif start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        what = "is a web page, not a checkpoint: links that end in dl=0 lead to a page, with dl=1 to the file"
    elif start.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"
    elif start[8:9] == b"{":
        what = "is a safetensors file, not an original checkpoint: its HuggingFace folder needs no conversion"
    else:
        what = "is not a PyTorch checkpoint: pass the .pyth or .pth file that TimeSformer or AST publish"
    raise CheckpointError(f"{path} {what}")


class SkippedValue:
    """Replaces a value that isn't a tensor and isn't needed, such as a NumPy scalar in an optimizer's state.

    It drops all data of the value, so no code of another library processes the file's bytes.
    """

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# Types and functions in values that training scripts save with the weights. A file that names others is refused.
_SKIPPED_GLOBALS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "argparse.Namespace",
    "pathlib.PosixPath",
)


def _load(path: Path) -> object:
    """Run `torch.load`, weights only. Every failure is a CheckpointError of one line."""
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([(SkippedValue, name) for name in _SKIPPED_GLOBALS]),
        ):
            warnings.simplefilter("ignore")  # about pickle protocols; they don't help the user
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the unpickler raise any exception
        raise CheckpointError(f"{path} {_why_not_loaded(str(error))}") from error


# Every plain pickle since protocol 4 (Python 3.4) starts with one of these opcodes. torch.save never writes them.
_PLAIN_PICKLE = {ord(code.code): code.name for code in pickletools.opcodes if code.proto >= 4}


def _why_not_loaded(message: str) -> str:
    """Translate a message of the weights-only unpickler for the user.

    The phrases come from torch/_weights_only_unpickler.py. Any other message means that the file is damaged.
    """
    trust = "nothing was run; if you trust its author, load it where it was made and save its state dict alone"
    if named := re.search(r"GLOBAL (\S+)", message):
        return f"would run code when loaded ({_printable(named[1])}) and was refused: {trust}"
    if "TorchScript" in message:
        return f"is a TorchScript program, not a checkpoint, and was refused: {trust}"
    operand = re.search(r"Unsupported operand (\d+)", message)
    if operand and (code := _PLAIN_PICKLE.get(int(operand[1]))):
        return f"could run code when loaded (pickle instruction {code}, not torch.save's) and was refused: {trust}"
    return "is cut short or damaged: download it again and compare its size with the one published"


# ------------------------------------------------------------------------------------------ what was loaded


def _bare_name(path: Path, name: object) -> str:
    if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_NAME:
        raise CheckpointError(
            f"{path} has an entry named {ascii(name)[:LONGEST_NAME]}, which can't be a tensor's name: {AS_PUBLISHED}"
        )
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _plain_tensor(path: Path, name: str, value: object, content: Mapping[object, object]) -> torch.Tensor:
    """Return the value if it is a dense tensor with all of its numbers in the file, else raise CheckpointError."""
    if not isinstance(value, torch.Tensor):
        entries = ", ".join(_printable(key) for key in list(content)[:5])
        raise CheckpointError(
            f"{path}: {name} is a {type(value).__name__}, not a tensor, so this is not a model's state dict "
            f"(it has {entries}): pass the file with the model's weights"
        )
    if value.layout != torch.strided or value.device.type != "cpu":
        raise CheckpointError(f"{path}: {name} is not an ordinary dense tensor: {AS_PUBLISHED}")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(value.shape)} but fewer numbers in the file: {AS_PUBLISHED}"
        )
    return value.detach()


def _describe_entry(key: object, value: object) -> str:
    tensors = _count_tensors(value)
    return f"{_printable(key)} ({tensors} tensors)" if tensors else _printable(key)


def _count_tensors(value: object) -> int:
    """Count the tensors in nested containers. Each container counts once, because it may contain itself."""
    seen: set[int] = set()
    waiting, tensors = [value], 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            tensors += 1
        elif isinstance(item, Mapping | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, Mapping) else item)
    return tensors


def _printable(key: object) -> str:
    """Return a name from the file as one printable line."""
    text = str(key)
    return text if text.isprintable() and len(text) <= LONGEST_NAME else ascii(text[:LONGEST_NAME])


# --------------------------------------------------------------------------------------------------- checks


def check_names(source: Source, model: str, expected: Iterable[str], blocks: str) -> None:
    """Raise CheckpointError if an expected tensor is missing, or if a block holds an unknown tensor.

    An unknown tensor in a block would change the features.
    """
    known = dict.fromkeys(expected)
    missing = [name for name in known if name not in source.tensors]
    if missing:
        reason = _recognise(set(source.tensors), model) or f"it is incomplete or another model: {AS_PUBLISHED}"
        raise CheckpointError(f"{source.path} lacks {listed(missing)}, which {model} has; {reason}")
    unexpected = [name for name in source.tensors if name not in known and name.startswith(f"{blocks}.")]
    if unexpected:
        raise CheckpointError(
            f"{source.path} holds {listed(unexpected)}, which {model} doesn't have, so features would be wrong: "
            "convert only unmodified models"
        )


def _recognise(names: set[str], wanted: str) -> str | None:
    """Return which model the file looks like instead and what to do, or None if it isn't a known one."""

    def any_name_has(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    if wanted != "AST" and "v.dist_token" in names:
        return "it is an AST checkpoint: use `alphafuse convert ast`"
    if wanted != "TimeSformer" and ("time_embed" in names or any_name_has(".temporal_")):
        return "it is a TimeSformer checkpoint: use `alphafuse convert timesformer`"
    if any_name_has("encoder.layer.", "embeddings.cls_token"):
        return "it has HuggingFace's names already: its folder needs no conversion"
    if "dist_token" in names:
        return "it looks like a DeiT image model: pass a file that TimeSformer or AST publish"
    if any_name_has("pathway"):
        return "it looks like a SlowFast model: pass a file with TimeSformer in its name"
    if wanted == "AST" and "pos_embed" in names and any_name_has("blocks."):
        return "it looks like an image transformer: pass a file that AST publishes"
    return None


def shape_of(source: Source, name: str, dimensions: int) -> Shape:
    """Return the shape of a tensor, or raise CheckpointError if it doesn't have that many dimensions."""
    shape = tuple(source.tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(
            f"{source.path}: {name} has shape {shape} but needs {dimensions} dimensions: {AS_PUBLISHED}"
        )
    return shape


def check_tensors(source: Source, expected: Mapping[str, Shape]) -> None:
    """Raise CheckpointError unless every tensor has the expected shape and holds finite floating-point numbers."""
    for name, shape in expected.items():
        tensor = source.tensors[name]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{source.path}: {name} has shape {tuple(tensor.shape)} but the other tensors require {shape}, "
                f"so it is incomplete or modified: {AS_PUBLISHED}"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{source.path}: {name} holds {dtype_name(tensor)}, not floating-point numbers; quantised files can't "
                f"be converted: {AS_PUBLISHED}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{source.path}: {name} holds NaN or infinity, so the file is damaged or its training diverged: "
                "download it again"
            )


def check_count(option: str, value: int | None, minimum: int = 1) -> None:
    """Raise CheckpointError unless an option is None or a whole number of at least `minimum`."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < minimum):
        raise CheckpointError(f"invalid {option} {value!r}: expected a whole number of at least {minimum}")


def dtype_name(tensor: torch.Tensor) -> str:
    """Return the name of a tensor's dtype: `float16`."""
    return str(tensor.dtype).removeprefix("torch.")


def listed(names: Sequence[object], shown: int = 3, between: str = ", ") -> str:
    """Join names for a message: `a, b, c and 4 more`."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return between.join(map(str, names[:shown])) + more
