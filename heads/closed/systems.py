"""The linear systems of `ridge`: W = (G + P)^-1 B for any penalty P per stream, in the smaller of two forms.

G is the Gram matrix of the training clips' centred vectors (D, D), B their products with the labels (D, C), P diagonal,
the same number on all dimensions of a stream. Where the clips are fewer than the dimensions, G has a smaller rank r:
with G = F F' and B = F Z, F (D, r), and F_s the rows of stream s,

    W_s = F_s A / p_s,    A = (I + sum over streams F_s' F_s / p_s)^-1 Z,

which takes a system of size r in place of D (Woodbury's identity).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.linalg.lapack import dpstrf

RANK_SHARE = 1e-12  # pivots below this share of the largest are the rounding of sums in float64


class System(Protocol):
    """Training sets whose heads are solved for; D: dimensions of its streams, C: classes."""

    def solve(self, penalties: torch.Tensor) -> torch.Tensor:
        """Return the matrix of each training set, (sets, D, C), for penalties (streams,) above 0."""
        ...

    def only(self, streams: Sequence[int]) -> System:
        """Return the system of some of the streams, by number."""
        ...


@dataclass(frozen=True)
class Primal:
    """Some training sets, solved in the space of the dimensions.

    Attributes:
        dims: dimension of each stream.
        gram: (sets, D, D).
        cross: (sets, D, C).
    """

    dims: tuple[int, ...]
    gram: torch.Tensor
    cross: torch.Tensor

    def solve(self, penalties: torch.Tensor) -> torch.Tensor:
        """Return (sets, D, C)."""
        penalised = self.gram.clone()
        sizes = torch.tensor(self.dims, device=penalties.device)
        penalised.diagonal(dim1=-2, dim2=-1).add_(penalties.repeat_interleave(sizes))
        return torch.cholesky_solve(self.cross, torch.linalg.cholesky(penalised))

    def only(self, streams: Sequence[int]) -> Primal:
        """Return the system of some of the streams."""
        own = columns_of(self.dims, streams, self.gram.device)
        return Primal(tuple(self.dims[i] for i in streams), self.gram[:, own][:, :, own], self.cross[:, own])


@dataclass(frozen=True)
class Dual:
    """One training set, solved in the space that its clips span.

    Attributes:
        factors: per stream (dim, r): F_s.
        kernels: per stream (r, r): F_s' F_s.
        labels: (r, C): Z.
    """

    factors: tuple[torch.Tensor, ...]
    kernels: tuple[torch.Tensor, ...]
    labels: torch.Tensor

    @classmethod
    def of(cls, dims: Sequence[int], gram: torch.Tensor, cross: torch.Tensor) -> Dual:
        """Factor the matrices of a training set by a Cholesky decomposition with pivots."""
        found, pivots, rank, _ = dpstrf(gram.cpu().numpy(), tol=RANK_SHARE * float(gram.diagonal().max()), lower=1)
        rows = torch.from_numpy(pivots.astype("int64") - 1).to(gram.device)
        lower = torch.from_numpy(found).to(gram.device)[:, :rank].tril()  # (D, r), its rows in the order of `rows`
        labels = torch.linalg.solve_triangular(lower[:rank], cross[rows[:rank]], upper=False)
        factor = torch.empty_like(lower)
        factor[rows] = lower
        factors = factor.split(list(dims))
        return cls(factors, tuple(one.T @ one for one in factors), labels)

    def solve(self, penalties: torch.Tensor) -> torch.Tensor:
        """Return (1, D, C)."""
        system = torch.eye(len(self.labels), dtype=self.labels.dtype, device=self.labels.device)
        for kernel, penalty in zip(self.kernels, penalties, strict=True):
            system.addcdiv_(kernel, penalty)
        found = torch.cholesky_solve(self.labels, torch.linalg.cholesky(system))
        parts = [factor @ (found / penalty) for factor, penalty in zip(self.factors, penalties, strict=True)]
        return torch.cat(parts)[None]

    def only(self, streams: Sequence[int]) -> Dual:
        """Return the system of some of the streams."""
        return Dual(tuple(self.factors[i] for i in streams), tuple(self.kernels[i] for i in streams), self.labels)


def columns_of(dims: Sequence[int], streams: Sequence[int], device: str | torch.device) -> torch.Tensor:
    """Return the columns of some of the streams, by number."""
    own = torch.arange(sum(dims), device=device).split(list(dims))
    return torch.cat([own[i] for i in streams])
