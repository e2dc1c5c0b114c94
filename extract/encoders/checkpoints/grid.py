"""Infer the layout of an AST file's patches: its position embedding gives only their number.

    patches, classes, options, file name -> grids with that many patches -> the first rule that decides

`infer_ast_grid` documents the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from alphafuse.errors import CheckpointError

from .source import listed

MEL_BINS = 128
PATCH_SIZE = 16
DEFAULT_STRIDE = 10
AST_STRIDES = (10, 12, 14, 16)  # the published AudioSet models, README "Pretrained Models"
POSSIBLE_STRIDES = tuple(range(10, 17))


@dataclass(frozen=True)
class AstInput:
    """The input of one of the published AST trainings.

    Attributes:
        dataset: the training set.
        max_length: input length in frames of 10 ms.
        mean: mean of the log mel filter bank over the training set.
        std: its standard deviation.
    """

    dataset: str
    max_length: int
    mean: float
    std: float


# By number of classes: audio_length, dataset_mean and dataset_std of egs/audioset/run.sh, esc50/run_esc.sh and
# speechcommands/run_sc.sh.
PUBLISHED_INPUTS = {
    527: AstInput("AudioSet", 1024, -4.2677393, 4.5689974),
    50: AstInput("ESC-50", 512, -6.6268077, 5.358466),
    35: AstInput("Speech Commands V2", 128, -6.845978, 5.5654526),
}
AST_LENGTHS = tuple(known.max_length for known in PUBLISHED_INPUTS.values())


@dataclass(frozen=True)
class AstGrid:
    """How AST cuts a spectrogram into patches of 16 mel bins x 16 frames.

    Attributes:
        fstride: stride of the patches in mel bins.
        tstride: stride of the patches in frames of 10 ms.
        max_length: input length in frames of 10 ms.
    """

    fstride: int
    tstride: int
    max_length: int

    @property
    def rows(self) -> int:
        """Number of patches along frequency."""
        return _steps(MEL_BINS, self.fstride)

    @property
    def columns(self) -> int:
        """Number of patches along time."""
        return _steps(self.max_length, self.tstride)

    def __str__(self) -> str:
        """`--fstride 10 --tstride 10 --max-length 1024`."""
        return f"--fstride {self.fstride} --tstride {self.tstride} --max-length {self.max_length}"


def _steps(length: int, stride: int) -> int:
    """Return the number of positions of a convolution of size 16 over `length`, without padding."""
    return (length - PATCH_SIZE) // stride + 1


def infer_ast_grid(
    path: Path,
    patches: int,
    classes: int,
    *,
    fstride: int | None = None,
    tstride: int | None = None,
    max_length: int | None = None,
) -> tuple[AstGrid, str | None]:
    """Return the grid of a file with this many patches, and a note if other grids have as many patches.

    The grid always has the strides and the length that are given. The first of these rules that yields a grid decides:

    1. the strides in the file's name, `audioset_16_16_0.4422.pth`: the original's egs/audioset/ensemble.py reads
       them there;
    2. strides of 10, its default, at a published input length (1024, 512 or 128 frames);
    3. the published strides (10, 12, 14, 16 in each direction) at a published length, or strides of 10 at any length;
    4. any strides of 10 to 16 at a published length.

    If a rule yields several grids, the input length of the published training with that many classes decides. If
    several grids remain, the file is refused.

    Raises:
        CheckpointError: no grid or several grids fit; the message names the options that decide.
    """
    constraints = _GridConstraints(patches, fstride, tstride, max_length)
    possible = constraints.grids(POSSIBLE_STRIDES, POSSIBLE_STRIDES)
    rules = (
        constraints.grids(*_strides_in_name(path)),
        constraints.grids([DEFAULT_STRIDE], [DEFAULT_STRIDE]),
        constraints.grids(AST_STRIDES, AST_STRIDES) + constraints.grids_of_any_length(),
        possible,
    )
    grids = next((grids for grids in rules if grids), [])
    if len(grids) > 1 and classes in PUBLISHED_INPUTS:
        grids = [grid for grid in grids if grid.max_length == PUBLISHED_INPUTS[classes].max_length] or grids
    if not grids:
        raise CheckpointError(
            f"{path}: its {patches} patches don't fit {constraints}: give its --fstride, --tstride and --max-length"
        )
    if len(grids) > 1:
        several = listed(grids, 6, " | ")
        raise CheckpointError(
            f"{path}: its {patches} patches fit several geometries: give the options of one: {several}"
        )
    return grids[0], _note_on_other_grids(grids[0], possible)


def _strides_in_name(path: Path) -> tuple[list[int], list[int]]:
    """Return the strides in a file's name: `audioset_16_10_0.4422.pth` -> ([16], [10])."""
    named = re.search(r"_([1-9]\d?)_([1-9]\d?)(?=[_.])", path.name)
    return ([int(named[1])], [int(named[2])]) if named else ([], [])


def _note_on_other_grids(grid: AstGrid, possible: list[AstGrid]) -> str | None:
    """Return the note for the report if other grids have as many patches, else None."""
    others = [other for other in possible if other != grid]
    if not others:
        return None
    same = listed(others, between=" | ")
    return f"assumed {grid}; {same} would give as many patches: if the file has one of those, give its options"


@dataclass(frozen=True)
class _GridConstraints:
    """The number of patches that a grid must have, and the options that were given (None: not given)."""

    patches: int
    fstride: int | None
    tstride: int | None
    max_length: int | None

    def __str__(self) -> str:
        options = (("fstride", self.fstride), ("tstride", self.tstride), ("max-length", self.max_length))
        given = " ".join(f"--{name} {value}" for name, value in options if value)
        return given or "strides of 10 to 16 at 1024, 512 or 128 frames"

    def grids(self, fstrides: Iterable[int], tstrides: Iterable[int]) -> list[AstGrid]:
        """Return the grids with these strides, at the given length or else at a published one."""
        return self._grids(fstrides, tstrides, [self.max_length] if self.max_length else AST_LENGTHS)

    def grids_of_any_length(self) -> list[AstGrid]:
        """Return the grid with the given strides, or strides of 10, at the shortest length that gives the patches.

        Returns no grid if a length is given, or if only one stride is given and isn't 10: the other would be a guess.
        """
        strides = (self.fstride or DEFAULT_STRIDE, self.tstride or DEFAULT_STRIDE)
        settled = bool(self.fstride and self.tstride) or strides == (DEFAULT_STRIDE, DEFAULT_STRIDE)
        if self.max_length or not settled:
            return []
        return self._grids([DEFAULT_STRIDE], [DEFAULT_STRIDE], None)

    def _grids(self, fstrides: Iterable[int], tstrides: Iterable[int], lengths: Iterable[int] | None) -> list[AstGrid]:
        """Return the grids at these lengths; None means the shortest length.

        `tstride` neighbouring lengths give the same patches, because frames past the last whole patch are not used.
        """
        grids = []
        for fstride in [self.fstride] if self.fstride else fstrides:
            rows = _steps(MEL_BINS, fstride)
            if self.patches % rows:
                continue
            for tstride in [self.tstride] if self.tstride else tstrides:
                shortest = (self.patches // rows - 1) * tstride + PATCH_SIZE
                fits = [n for n in (lengths or [shortest]) if shortest <= n < shortest + tstride]
                grids += [AstGrid(fstride, tstride, n) for n in fits[:1]]
        return grids
