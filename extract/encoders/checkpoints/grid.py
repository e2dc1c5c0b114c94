"""How an AST file's patches lie: its position embedding says only how many there are.

    patches, classes, options, file name -> grids with as many patches -> the first rule that decides

`infer_ast_grid` has the rules.
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
class AstRecipe:
    """What one of AST's training recipes says of its input.

    `max_length` counts frames of 10 ms; `mean` and `std` are those of the log mel filter bank.
    """

    dataset: str
    max_length: int
    mean: float
    std: float


# By class count: audio_length, dataset_mean and dataset_std of egs/audioset/run.sh, esc50/run_esc.sh and
# speechcommands/run_sc.sh.
RECIPES = {
    527: AstRecipe("AudioSet", 1024, -4.2677393, 4.5689974),
    50: AstRecipe("ESC-50", 512, -6.6268077, 5.358466),
    35: AstRecipe("Speech Commands V2", 128, -6.845978, 5.5654526),
}
AST_LENGTHS = tuple(recipe.max_length for recipe in RECIPES.values())


@dataclass(frozen=True)
class AstGrid:
    """How AST cuts its input into patches of 16 x 16: strides in mel bins and frames, input length in frames."""

    fstride: int
    tstride: int
    max_length: int

    @property
    def rows(self) -> int:
        """Patches along frequency."""
        return _steps(MEL_BINS, self.fstride)

    @property
    def columns(self) -> int:
        """Patches along time."""
        return _steps(self.max_length, self.tstride)

    def __str__(self) -> str:
        """`--fstride 10 --tstride 10 --max-length 1024`."""
        return f"--fstride {self.fstride} --tstride {self.tstride} --max-length {self.max_length}"


def _steps(length: int, stride: int) -> int:
    """Positions of a convolution of 16 over `length`, without padding."""
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
    """The grid that a file with this many patches was made for, and what to know when it was assumed.

    Options that are given are kept to. Beyond them, the first of these rules that some grid fits decides:

    1. the strides in the file's name, `audioset_16_16_0.4422.pth`: the original's egs/audioset/ensemble.py reads
       them there;
    2. strides of 10, its default, at a published input length (1024, 512 or 128 frames);
    3. the published strides (10, 12, 14, 16, each way) at a published length, or strides of 10 at any length;
    4. any strides of 10 to 16 at a published length.

    When several grids fit rule 3 or 4, the one with the input length of the recipe with that many classes is taken,
    else the file is refused.

    Raises:
        CheckpointError: no grid or several fit; the message has the options that decide.
    """
    asked = _Asked(patches, fstride, tstride, max_length)
    possible = asked.fitting(POSSIBLE_STRIDES, POSSIBLE_STRIDES)
    rules = (
        asked.fitting(*_strides_in_name(path)),
        asked.fitting([DEFAULT_STRIDE], [DEFAULT_STRIDE]),
        asked.fitting(AST_STRIDES, AST_STRIDES) + asked.fitting_any_length(),
        possible,
    )
    grids = next((grids for grids in rules if grids), [])
    if len(grids) > 1 and classes in RECIPES:
        grids = [grid for grid in grids if grid.max_length == RECIPES[classes].max_length] or grids
    if not grids:
        raise CheckpointError(
            f"{path}: its {patches} patches don't fit {asked}: give its --fstride, --tstride and --max-length"
        )
    if len(grids) > 1:
        several = listed(grids, 6, " | ")
        raise CheckpointError(f"{path}: its {patches} patches fit several geometries, so say which: {several}")
    return grids[0], _assumed(grids[0], possible)


def _strides_in_name(path: Path) -> tuple[list[int], list[int]]:
    """`audioset_16_10_0.4422.pth` -> ([16], [10])."""
    named = re.search(r"_([1-9]\d?)_([1-9]\d?)(?=[_.])", path.name)
    return ([int(named[1])], [int(named[2])]) if named else ([], [])


def _assumed(grid: AstGrid, possible: list[AstGrid]) -> str | None:
    """What to say when other grids have as many patches."""
    others = [other for other in possible if other != grid]
    if not others:
        return None
    same = listed(others, between=" | ")
    return f"taken to be {grid}, but as many patches have {same}: give the options if it is one of those"


@dataclass(frozen=True)
class _Asked:
    """The options a grid must keep to, and the patches it must have."""

    patches: int
    fstride: int | None
    tstride: int | None
    max_length: int | None

    def __str__(self) -> str:
        options = (("fstride", self.fstride), ("tstride", self.tstride), ("max-length", self.max_length))
        given = " ".join(f"--{name} {value}" for name, value in options if value)
        return given or "strides of 10 to 16 at 1024, 512 or 128 frames"

    def fitting(self, fstrides: Iterable[int], tstrides: Iterable[int]) -> list[AstGrid]:
        """Grids with these strides at the length asked for, or else at a published one."""
        return self._grids(fstrides, tstrides, [self.max_length] if self.max_length else AST_LENGTHS)

    def fitting_any_length(self) -> list[AstGrid]:
        """The grid with the strides asked for, or strides of 10, and the shortest length that gives the patches.

        With one stride other than 10 asked for and the length free, any default for the other would be a guess.
        """
        strides = (self.fstride or DEFAULT_STRIDE, self.tstride or DEFAULT_STRIDE)
        settled = bool(self.fstride and self.tstride) or strides == (DEFAULT_STRIDE, DEFAULT_STRIDE)
        if self.max_length or not settled:
            return []
        return self._grids([DEFAULT_STRIDE], [DEFAULT_STRIDE], None)

    def _grids(self, fstrides: Iterable[int], tstrides: Iterable[int], lengths: Iterable[int] | None) -> list[AstGrid]:
        """A stride of t fits `tstride` neighbouring lengths: frames past the last whole patch are not seen."""
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
