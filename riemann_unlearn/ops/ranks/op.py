"""How many rows of a large bank are at least as similar to each query as its own, in linear memory.

``blocks`` does it by torch on any device: it takes products in blocks, and compares by differences what a
product cannot order. So rows that are equal tie exactly, and ties count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature, widen
from riemann_unlearn.ops.backend import Backend, as_scalar, implementation
from riemann_unlearn.ops.topk.op import check_bank
from riemann_unlearn.registry import register

register(Backend("ranks", "blocks", "riemann_unlearn.ops.ranks.blocks"))


def ranks(queries: Tensor, bank: Tensor, own: Tensor, c: Curvature | None = None) -> Tensor:
    """How many other rows of ``bank`` are at least as similar to each query as its own row.

    Parameters
    ----------
    queries : Tensor, shape (N, D)
    bank : Tensor, shape (M, D)
    own : Tensor, shape (N,)
        Long; the row of ``bank`` that belongs to each query.
    c : float or Tensor, optional
        Curvature magnitude of tangent vectors at the origin; without it vectors are compared by their cosine.

    Returns
    -------
    Tensor, shape (N,)
        Long; 0 where the own row is the most similar. What is no number counts as more similar.

    Raises
    ------
    ValueError
        For shapes that do not fit, or a ``c`` that is not positive.

    Examples
    --------
    >>> import torch
    >>> bank = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> ranks(bank, bank, torch.arange(3), c=1.0)
    tensor([1, 1, 0])
    """
    check_bank(queries, bank)
    if own.shape != (len(queries),) or own.is_floating_point():
        raise ValueError(
            f"own must be integers of shape ({len(queries)},), got {own.dtype} of {tuple(own.shape)}"
        )
    # The bank keeps its dtype: it is widened a block at a time, as it is read.
    queries, bank = widen(queries.detach()), bank.detach()
    curvature = as_scalar(1.0 if c is None else c, queries, curvature=True).detach()
    count: Tensor = _ranks(queries, bank, own.to(torch.int64), curvature, c is not None)
    return count


@torch.library.custom_op(
    "riemann_unlearn::ranks",
    mutates_args=(),
    schema="(Tensor queries, Tensor bank, Tensor own, Tensor c, bool hyperbolic) -> Tensor",
)
def _ranks(queries: Tensor, bank: Tensor, own: Tensor, c: Tensor, hyperbolic: bool) -> Tensor:
    count: Tensor = implementation("ranks", queries).ranks(queries, bank, own, c.double().sqrt(), hyperbolic)
    return count


@_ranks.register_fake
def _(queries: Tensor, bank: Tensor, own: Tensor, c: Tensor, hyperbolic: bool) -> Tensor:
    return torch.empty_like(own)
