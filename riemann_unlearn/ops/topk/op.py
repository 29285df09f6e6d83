"""The k nearest of a large bank, without the matrix of all distances.

``blocks`` does it by torch on any device: it takes products in blocks, keeps a few more candidates than asked
for, and orders what comes out by distances computed from differences.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature, widen
from riemann_unlearn.ops.backend import Backend, as_scalar, implementation
from riemann_unlearn.registry import register

_CHECKED = 8192
"""Rows of a bank looked at together for numbers that are not finite."""

register(Backend("topk", "blocks", "riemann_unlearn.ops.topk.blocks"))


class TopK(NamedTuple):
    """What :func:`topk` returns, the most similar first."""

    similarity: Tensor
    """Minus the distance, or the cosine, shape (N, k)."""
    indices: Tensor
    """Rows of the bank, shape (N, k)."""


def topk(queries: Tensor, bank: Tensor, k: int, c: Curvature | None = None) -> TopK:
    """The k rows of ``bank`` most similar to each query; takes no gradient.

    Parameters
    ----------
    queries : Tensor, shape (N, D)
    bank : Tensor, shape (M, D)
        M ≥ k.
    k : int
    c : float or Tensor, optional
        Curvature magnitude of tangent vectors at the origin; without it vectors are compared by their cosine.

    Returns
    -------
    TopK

    Raises
    ------
    ValueError
        For shapes that do not fit, numbers that are not finite, ``k`` that is not within 1 and M, or a
        ``c`` that is not positive.

    Examples
    --------
    >>> import torch
    >>> bank = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 0.0]])
    >>> topk(torch.tensor([[2.5, 0.0]]), bank, k=2, c=1.0)
    TopK(similarity=tensor([[-0.5000, -0.5000]]), indices=tensor([[1, 2]]))
    """
    check_bank(queries, bank)
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must be from 1 to the bank's {len(bank)} rows, got {k}")
    # The bank keeps its dtype: it is widened a block at a time, as it is read.
    queries, bank = widen(queries.detach()), bank.detach()
    curvature = as_scalar(1.0 if c is None else c, queries, curvature=True).detach()
    return TopK(*_topk(queries, bank, k, curvature, c is not None))


@torch.library.custom_op(
    "riemann_unlearn::topk",
    mutates_args=(),
    schema="(Tensor queries, Tensor bank, int k, Tensor c, bool hyperbolic) -> (Tensor, Tensor)",
)
def _topk(queries: Tensor, bank: Tensor, k: int, c: Tensor, hyperbolic: bool) -> tuple[Tensor, Tensor]:
    # Every comparison with NaN is false, so that a bank that holds one would lose rows without a word.
    for name, features in (("queries", queries), ("bank", bank)):
        if not torch.stack([block.isfinite().all() for block in torch.split(features, _CHECKED)]).all():
            raise ValueError(
                f"{name} must be finite, and hold NaN or Inf, which is near nothing; remove those rows first"
            )
    nearest: tuple[Tensor, Tensor] = implementation("topk", queries).topk(
        queries, bank, k, c.double().sqrt(), hyperbolic
    )
    return nearest


@_topk.register_fake
def _(queries: Tensor, bank: Tensor, k: int, c: Tensor, hyperbolic: bool) -> tuple[Tensor, Tensor]:
    shape = len(queries), k
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


def check_bank(queries: Tensor, bank: Tensor) -> None:
    """Raise ValueError for features that cannot be compared."""
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"expected shapes (N, D) and (M, D), got {tuple(queries.shape)} and {tuple(bank.shape)}"
        )
