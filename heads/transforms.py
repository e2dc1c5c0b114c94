"""Alpha-transforms: what is done to one modality's embeddings before fusion.

The paper transforms one of the two modalities and leaves the other as it is (paper section 3, table 1). Each transform
here is a function `(x, alpha) -> y` of an array (..., dim) of the same shape; `TRANSFORMS` names them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from alphafuse.errors import ExperimentError, unknown

POS_SCALAR = 1.5  # paper section 3, table 1; the authors' notebook multiplies by 2 under headings that say 1.5
NOTEBOOK_POS_SCALAR = 2.0  # what `pos-scalar` means for embeddings of protocol `notebook`
NEG_SCALAR = 0.75  # paper section 3, table 1, and the authors' notebook (whose headings say 0.5)


def identity(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Return x: the untransformed baseline."""
    return x


def square_root(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """sqrt(relu(x)), as the authors' notebook computes the paper's "square root" (table 1, rows 1 and 4).

    Negative features become 0. Its gradient at 0 is infinite: fine for constants, which embeddings are.
    """
    return torch.sqrt(torch.relu(x))


def signed_square_root(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """sign(x) * sqrt(|x|): a square root that keeps the negative half (power normalisation, Perronnin et al. 2010)."""
    return torch.sign(x) * torch.sqrt(torch.abs(x))


def scaled(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Return alpha * x: the paper's scalar transforms (table 1, rows 2, 3, 5 and 6) and any other alpha."""
    return alpha * x


@dataclass(frozen=True)
class Transform:
    """An entry of `TRANSFORMS`.

    Attributes:
        function: `(x, alpha) -> y`, both (..., dim).
        formula: for people.
        alpha: "none" (takes no alpha), "fixed" (its own `value`), "required" (the experiment's), "learned" (trained
            with the head from the experiment's alpha, or from `value`).
        value: alpha when the experiment gives none.
    """

    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    formula: str
    alpha: Literal["none", "fixed", "required", "learned"] = "none"
    value: float = 1.0


TRANSFORMS: dict[str, Transform] = {
    "none": Transform(identity, "x"),
    "sqrt": Transform(square_root, "sqrt(relu(x))"),
    "signed-sqrt": Transform(signed_square_root, "sign(x) sqrt(|x|)"),
    "pos-scalar": Transform(scaled, f"{POS_SCALAR} x", alpha="fixed", value=POS_SCALAR),
    "neg-scalar": Transform(scaled, f"{NEG_SCALAR} x", alpha="fixed", value=NEG_SCALAR),
    "scale": Transform(scaled, "alpha x", alpha="required"),
    "learned": Transform(scaled, "alpha x, alpha trained with the head", alpha="learned"),
}


def check_transform(name: str, alpha: float | None) -> Transform:
    """The entry of that name, once it is certain that it goes with this alpha.

    Raises:
        ExperimentError: unknown name; alpha missing, given to a transform that takes none, or not finite.
    """
    if name not in TRANSFORMS:
        raise ExperimentError(unknown("transform", name, TRANSFORMS))
    transform = TRANSFORMS[name]
    if transform.alpha == "required" and alpha is None:
        raise ExperimentError(f"transform '{name}' needs an alpha: give one (--alpha 1.25)")
    if transform.alpha in ("none", "fixed") and alpha is not None:
        raise ExperimentError(
            f"transform '{name}' ({transform.formula}) takes no alpha: leave --alpha out, or use --transform scale"
        )
    if alpha is not None and not abs(alpha) <= torch.finfo(torch.float32).max:  # NaN compares false
        raise ExperimentError(f"alpha must be a finite number that float32 can hold, not {alpha}")
    return transform


class AlphaTransform(nn.Module):
    """One modality's transform as a layer, (..., dim) -> (..., dim).

    `alpha` is a scalar parameter when it is learned, else a constant that is not part of the state.
    """

    alpha: torch.Tensor

    def __init__(self, name: str = "none", alpha: float | None = None) -> None:
        super().__init__()
        self.name = name
        self.transform = check_transform(name, alpha)
        self.initial = self.transform.value if alpha is None else float(alpha)
        value = torch.tensor(self.initial, dtype=torch.float32)
        if self.transform.alpha == "learned":
            self.alpha = nn.Parameter(value)
        else:
            self.register_buffer("alpha", value, persistent=False)

    def reset_parameters(self) -> None:
        """Put a learned alpha back to its initial value."""
        with torch.no_grad():
            self.alpha.fill_(self.initial)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform embeddings (..., dim)."""
        return self.transform.function(x, self.alpha)

    def extra_repr(self) -> str:
        """The name and formula, shown when the head is printed."""
        return f"{self.name}: {self.transform.formula}"
