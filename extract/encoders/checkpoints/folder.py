"""Write a converted model to a HuggingFace folder, completely or not at all, and report what was done.

    checked file -> `Conversion` (its tensors, resized if needed) -> `write_folder` -> `ConversionReport`

The folder holds config.json, model.safetensors and preprocessor_config.json, which `from_pretrained` reads.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from alphafuse.errors import CheckpointError

from .source import Source, Tensors, dtype_name, listed


@dataclass(frozen=True)
class ResizedTensor:
    """A position or time embedding whose length changed.

    Attributes:
        name: the tensor's name in the original file.
        old_shape: its shape in the original file.
        new_shape: its shape in the folder.
        how: the interpolation, for people.
    """

    name: str
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    how: str

    def __str__(self) -> str:
        """`pos_embed (1, 197, 768) -> (1, 785, 768), nearest along the flat sequence`."""
        return f"{self.name} {self.old_shape} -> {self.new_shape}, {self.how}"


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion found, changed and left out. `print(report)` shows it.

    Attributes:
        model: `timesformer` or `ast`.
        source: the original file.
        source_sha256: the sha256 of its contents.
        out: the HuggingFace folder.
        geometry: the input sizes and layer sizes of the folder's model.
        classes: number of classes of the original classifier, which the folder keeps.
        dataset: the published training set with that many classes, or None.
        used: names of the tensors in the folder, in the file's order, without `module.` and `model.`.
        resized: embeddings whose length changed.
        unused: names of the tensors that are not in the folder; the features don't depend on them.
        beside: other entries of the file, which are not converted, such as `optimizer_state (346 tensors)`.
        notes: assumptions, and what to know before using the folder.
    """

    model: Literal["timesformer", "ast"]
    source: Path
    source_sha256: str
    out: Path
    geometry: dict[str, int | float | str]
    classes: int
    dataset: str | None
    used: tuple[str, ...]
    resized: tuple[ResizedTensor, ...]
    unused: tuple[str, ...]
    beside: tuple[str, ...]
    notes: tuple[str, ...]

    def summary(self) -> list[str]:
        """Return the report as lines of text."""
        geometry = ", ".join(f"{name} {value}" for name, value in self.geometry.items())
        return [
            f"{self.source} (sha256 {self.source_sha256}) -> {self.out}",
            f"{self.model}: {geometry}",
            f"{self.classes} classes" + (f" ({self.dataset})" if self.dataset else ""),
            f"{len(self.used)} tensors used, {len(self.resized)} resizes, {len(self.unused)} unused",
            *(f"resized: {tensor}" for tensor in self.resized),
            *([f"unused: {', '.join(self.unused)}"] if self.unused else []),
            *([f"beside the weights, not converted: {', '.join(self.beside)}"] if self.beside else []),
            *(f"note: {note}" for note in self.notes),
        ]

    def __str__(self) -> str:
        """Return the lines of `summary` as one text."""
        return "\n".join(self.summary())

    def to_json(self) -> dict[str, Any]:
        """Return the report as a dict for `json.dumps`."""
        return {**asdict(self), "source": str(self.source), "out": str(self.out)}


class Conversion:
    """The tensors of a checked file, and a record of what was changed.

    Attributes:
        source: the file.
        names: name in the file -> name in the folder.
        tensors: tensors by their name in the file, as float32. Half precision converts to it without loss.
        resized: embeddings whose length changed, for the report.
        notes: remarks for the report.
    """

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        self.source = source
        self.names = names
        self.tensors: Tensors = {name: source.tensors[name].float() for name in names}
        self.resized: list[ResizedTensor] = []
        others = sorted({dtype_name(source.tensors[name]) for name in names} - {"float32"})
        self.notes = [f"{' and '.join(others)} numbers were written as float32"] if others else []

    def replace(self, name: str, new: torch.Tensor, how: str) -> None:
        """Replace a tensor of the file with a resized one."""
        self.resized.append(ResizedTensor(name, tuple(self.tensors[name].shape), tuple(new.shape), how))
        self.tensors[name] = new

    def replace_patches(self, name: str, tokens: int, patches: torch.Tensor, how: str) -> None:
        """Replace all rows of a position embedding but the first `tokens` with `patches` (1, patches, width)."""
        self.replace(name, torch.cat([self.tensors[name][:, :tokens], patches], dim=1), how)

    def renamed(self) -> Tensors:
        """Return the tensors by their name in the folder."""
        return {self.names[name]: tensor for name, tensor in self.tensors.items()}

    def report(
        self,
        model: Literal["timesformer", "ast"],
        out: Path,
        *,
        geometry: dict[str, int | float | str],
        classes: int,
        dataset: str | None,
    ) -> ConversionReport:
        """Return the report of this conversion."""
        return ConversionReport(
            model=model,
            source=self.source.path,
            source_sha256=self.source.sha256,
            out=out,
            geometry=geometry,
            classes=classes,
            dataset=dataset,
            used=tuple(name for name in self.source.tensors if name in self.names),
            resized=tuple(self.resized),
            unused=tuple(name for name in self.source.tensors if name not in self.names),
            beside=self.source.beside,
            notes=tuple(self.notes),
        )


def check_out(out: Path) -> None:
    """Raise CheckpointError unless `out` does not exist or is an empty folder."""
    try:
        taken = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as error:
        raise CheckpointError(f"{out} can't be read: {error.strerror or error}: choose another folder") from None
    if taken:
        raise CheckpointError(f"{out} exists already and is not an empty folder: remove it or choose another")


def write_folder(
    out: Path,
    source: Source,
    *,
    config: Any,  # PretrainedConfig, which transformers doesn't type
    tensors: Tensors,
    preprocessor: Mapping[str, Any],
    model: Any,
) -> None:
    """Write the three files to a temporary folder, load them as a user would, then rename the folder to `out`.

    Args:
        out: the folder to make; `check_out` has accepted it.
        source: the original file, named in the weights' metadata.
        config: content of config.json.
        tensors: content of model.safetensors.
        preprocessor: content of preprocessor_config.json.
        model: a class of transformers. It must find all of its tensors in the folder, and no others.

    Raises:
        CheckpointError: the folder can't be written, or transformers doesn't load it completely; `out` is not made.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", suffix=".partial", dir=out.parent, ignore_cleanup_errors=True
        ) as temporary:
            folder = Path(temporary) / out.name
            folder.mkdir()
            config.save_pretrained(folder)
            # Copy: tensors of a file may share memory, which safetensors refuses to write.
            save_file(
                {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
                folder / "model.safetensors",
                metadata={"format": "pt", "source": source.path.name, "source_sha256": source.sha256},
            )
            text = json.dumps(dict(preprocessor), indent=2) + "\n"
            (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
            # safetensors makes files that only the owner can read; config.json has the mode of any new file
            (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
            _check_loads(folder, model, out)
            for file in folder.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            folder.replace(out)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise CheckpointError(
            f"can't write {out}: {reason}: free some space or choose another folder, then convert again"
        ) from error


def _check_loads(folder: Path, model: Any, out: Path) -> None:
    """Raise unless `from_pretrained` finds every tensor and no others: it fills missing ones with random numbers."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        _, found = model.from_pretrained(folder, output_loading_info=True)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise CheckpointError(
            f"{out}: the installed transformers has other names for {listed(wrong)}: convert with transformers 5.23, "
            "and please report it"
        )
