"""A published file, read without running anything that it may hold, and checked before anything is made of it.

    file -> its first bytes -> weights-only load -> tensors by bare name (`read_source`)
         -> every name there and no strange one (`check_names`) -> shapes that agree, finite numbers (`check_tensors`)

Each refusal is a `CheckpointError` of one line: which file, what is wrong with it, and the way out.
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
_WEIGHTS_KEYS = ("model_state", "state_dict", "model")  # where the original's loader looks, and plain state dicts
_PREFIXES = ("module.", "model.")  # DataParallel's, and TimeSformer's wrapper around its VisionTransformer


@dataclass(frozen=True)
class Source:
    """A checkpoint as read.

    Attributes:
        path: the file, and `sha256`, its contents.
        tensors: by name, without `module.` and `model.`, in the file's order.
        beside: what else the file holds: `optimizer_state (346 tensors)`.
    """

    path: Path
    sha256: str
    tensors: Tensors
    beside: tuple[str, ...]


def read_source(path: Path) -> Source:
    """Read a checkpoint without running anything it may hold.

    Raises:
        CheckpointError: there is no such file, it is no checkpoint, is damaged, would run code, or holds no model.
    """
    _check_first_bytes(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} where a checkpoint holds tensors by name: {AS_PUBLISHED}"
        )
    key = next((key for key in _WEIGHTS_KEYS if isinstance(content.get(key), Mapping)), None)
    tensors: Tensors = {}
    for name, value in (content if key is None else content[key]).items():
        bare = _bare_name(path, name)
        if bare in tensors:
            raise CheckpointError(
                f"{path} holds two tensors named {bare} without prefixes, so it is no single model: {AS_PUBLISHED}"
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
    """Refuse what isn't a file of `torch.save`, saying what it is."""
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
        what = "is a Git LFS pointer, not the file itself: run `git lfs pull` beside it"
    elif start[8:9] == b"{":
        what = "is a safetensors file, not an original checkpoint: its HuggingFace folder needs no conversion"
    else:
        what = "is not a PyTorch checkpoint: pass the .pyth or .pth file that TimeSformer or AST publish"
    raise CheckpointError(f"{path} {what}")


class NotRead:
    """Stands in for a value that isn't a tensor and isn't needed, such as a NumPy scalar in an optimizer's state.

    Whatever the file hands to it is dropped, so no code of another library sees the file's bytes.
    """

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What training scripts leave beside the weights. A file that names anything else is refused.
_NOT_READ = (
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
    """`torch.load`, weights only, each way of failing told in one line."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(NotRead, name) for name in _NOT_READ]):
            warnings.simplefilter("ignore")  # remarks on pickle protocols, which say nothing to the user
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise CheckpointError(f"{path} {_why_not_loaded(str(error))}") from error


# Every plain pickle since protocol 4 (Python 3.4) starts with one of these, which torch.save never writes.
_PLAIN_PICKLE = {ord(code.code): code.name for code in pickletools.opcodes if code.proto >= 4}


def _why_not_loaded(message: str) -> str:
    """What a message of the weights-only unpickler means to the user.

    The phrases are those of torch/_weights_only_unpickler.py; whatever isn't one of them is a damaged file.
    """
    trust = "nothing was run; if you trust its maker, load it where it was made and save its state dict alone"
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
            f"{path} has an entry named {ascii(name)[:LONGEST_NAME]} where tensors have names: {AS_PUBLISHED}"
        )
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _plain_tensor(path: Path, name: str, value: object, content: Mapping[object, object]) -> torch.Tensor:
    """The value, once it is known to be an ordinary tensor with all of its numbers in the file."""
    if not isinstance(value, torch.Tensor):
        entries = ", ".join(_printable(key) for key in list(content)[:5])
        raise CheckpointError(
            f"{path}: {name} is a {type(value).__name__}, not a tensor, so this is no model's state dict "
            f"(it has {entries}): pass the file with the model's weights"
        )
    if value.layout != torch.strided or value.device.type != "cpu":
        raise CheckpointError(f"{path}: {name} is no ordinary dense tensor: {AS_PUBLISHED}")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(value.shape)} but fewer numbers in the file: {AS_PUBLISHED}"
        )
    return value.detach()


def _describe_entry(key: object, value: object) -> str:
    tensors = _count_tensors(value)
    return f"{_printable(key)} ({tensors} tensors)" if tensors else _printable(key)


def _count_tensors(value: object) -> int:
    """Tensors in nested containers; each container counts once, since a file's may contain themselves."""
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
    """A name from the file, on one line whatever the file says."""
    text = str(key)
    return text if text.isprintable() and len(text) <= LONGEST_NAME else ascii(text[:LONGEST_NAME])


# --------------------------------------------------------------------------------------------------- checks


def check_names(source: Source, model: str, expected: Iterable[str], blocks: str) -> None:
    """Every expected tensor is there, and no block holds another, which would take part in the features."""
    known = dict.fromkeys(expected)
    missing = [name for name in known if name not in source.tensors]
    if missing:
        reason = _what_is_it(set(source.tensors), model) or f"it is incomplete or another model: {AS_PUBLISHED}"
        raise CheckpointError(f"{source.path} lacks {listed(missing)}, which {model} has; {reason}")
    strange = [name for name in source.tensors if name not in known and name.startswith(f"{blocks}.")]
    if strange:
        raise CheckpointError(
            f"{source.path} holds {listed(strange)}, which {model} doesn't have, so features would be wrong: convert "
            "only unmodified models"
        )


def _what_is_it(names: set[str], wanted: str) -> str | None:
    """What a file that isn't the wanted model looks like, and the way out; None when it isn't known."""

    def some(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    if wanted != "AST" and "v.dist_token" in names:
        return "it is an AST checkpoint: use `alphafuse convert ast`"
    if wanted != "TimeSformer" and ("time_embed" in names or some(".temporal_")):
        return "it is a TimeSformer checkpoint: use `alphafuse convert timesformer`"
    if some("encoder.layer.", "embeddings.cls_token"):
        return "it has HuggingFace's names already: its folder needs no conversion"
    if "dist_token" in names:
        return "it looks like a DeiT image model: pass a file that TimeSformer or AST publish"
    if some("pathway"):
        return "it looks like a SlowFast model: pass a file with TimeSformer in its name"
    if wanted == "AST" and "pos_embed" in names and some("blocks."):
        return "it looks like an image transformer: pass a file that AST publishes"
    return None


def shape_of(source: Source, name: str, dimensions: int) -> Shape:
    """Shape of a tensor that the geometry is read from."""
    shape = tuple(source.tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(
            f"{source.path}: {name} has shape {shape} where {dimensions} dimensions are needed: {AS_PUBLISHED}"
        )
    return shape


def check_tensors(source: Source, expected: Mapping[str, Shape]) -> None:
    """Every tensor has the shape that the others imply, and holds finite floating-point numbers."""
    for name, shape in expected.items():
        tensor = source.tensors[name]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{source.path}: {name} has shape {tuple(tensor.shape)} where the other tensors ask for {shape}, "
                f"so it is incomplete or modified: {AS_PUBLISHED}"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{source.path}: {name} holds {dtype_name(tensor)}, not floating-point numbers, and quantised files "
                f"can't be converted: {AS_PUBLISHED}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{source.path}: {name} holds NaN or infinity, so it is damaged or diverged: download it again"
            )


def check_count(option: str, value: int | None, least: int = 1) -> None:
    """An option is left out, or is a whole number of at least `least`."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise CheckpointError(f"{option} {value!r} can't be: give a whole number of at least {least}")


def dtype_name(tensor: torch.Tensor) -> str:
    """`float16`."""
    return str(tensor.dtype).removeprefix("torch.")


def listed(names: Sequence[object], shown: int = 3, between: str = ", ") -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return between.join(map(str, names[:shown])) + more
