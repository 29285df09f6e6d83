r"""Ranks by torch, in blocks of the bank: on any device.

A product gives :math:`Q = \cosh D - 1` of each query with every row of a block, and what Q is for the query's
own row is known from differences. (Where float32 does not reach, it is :math:`Y = 2e^{-r_1-r_2}Q` instead;
:mod:`riemann_unlearn.ops.polar`.) If the two are further apart than a product is off, they are in the right
order, and no logarithm is taken; what remains is compared by differences. So rows that are equal tie exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.ops.polar import Side, pair_similarities
from riemann_unlearn.ops.topk.blocks import is_far

QUERIES, BLOCK = 1024, 2048
"""Queries and rows of the bank at a time: the product of a block is 8 MiB."""

ROUNDING = {torch.float32: 2.0**-18, torch.float64: 2.0**-44}
"""Of a product, relative to the lengths of its rows: 2^-24 and 2^-53, times what the errors of sums of some
thousand terms grow to."""


def ranks(queries: Tensor, bank: Tensor, own: Tensor, root: Tensor, hyperbolic: bool) -> Tensor:
    """How many other rows of ``bank`` are at least as similar to each query as its own row."""
    count = torch.zeros_like(own)
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(queries), QUERIES):
            rows = slice(start, start + QUERIES)
            left = Side(queries[rows], root, hyperbolic=hyperbolic)
            count[rows] = _count(left, bank, own[rows])
    return count


def _count(left: Side, bank: Tensor, own: Tensor) -> Tensor:
    """The ranks of the rows of ``left``."""
    every = torch.arange(len(left), device=bank.device)
    mine = pair_similarities(left, bank, every, own)
    careful = left.hyperbolic and (left.x.dtype == torch.float64 or is_far(left, bank))
    rounding = ROUNDING[torch.float64 if careful else left.x.dtype]
    # For cosines: the products are minus them, and rows have length 1.
    size, length = -mine, torch.ones_like(mine)
    if left.hyperbolic:
        half = -left.root * mine / 2
        # Y over e^-r2, or Q. log(2 sinh²(D/2)) + log 2 - r1 does not overflow where Q does.
        # 4e^-r1 sinh²(D/2) with sinh(D/2) = e^(D/2) (1 - e^-D)/2. At D = 0 the logarithm is -Inf, and this 0.
        size = torch.exp(2 * (half + torch.log(-torch.expm1(-2 * half))) - left.r)
        if not careful:
            size, length = 2 * torch.sinh(half).square(), torch.cosh(left.r)
    # A careful product has the own row's part taken off below, so that what is compared is small.
    level = torch.zeros_like(size) if careful else size
    count = torch.zeros_like(own)
    for start in range(0, len(bank), BLOCK):
        block = bank[start : start + BLOCK].to(left.x.dtype)
        right = Side(block, left.root, hyperbolic=left.hyperbolic, right=True)
        product = left.operand(slice(0, len(left)), careful) @ right.operand(slice(0, len(block)), careful).mT
        if careful:
            # The product is 4e^-(r1+r2) sinh²(D/2) of each row; what is left has the sign of the row's D
            # minus the own.
            product -= torch.outer(size, right.decay)
        # A fast product errs by ROUNDING of cosh r1 cosh r2; for the block, of its largest.
        width = torch.cosh(right.r).amax() if left.hyperbolic and not careful else 1.0
        here = (own >= start) & (own < start + len(block))
        product[every[here], own[here] - start] = torch.inf  # itself is no other
        least, most = (
            (level + sign * rounding * length * width).to(product.dtype)[:, None] for sign in (-1, 1)
        )
        # Beyond the rounding on either side the order is sure; between, it is decided by differences.
        nearer, beyond = product < least, product > most
        sure, unsure = nearer.sum(1), len(block) - beyond.sum(1)
        count += sure
        rows = (unsure > sure).nonzero()[:, 0]
        i, j = (~(nearer[rows] | beyond[rows])).nonzero(as_tuple=True)
        i = rows[i]
        # Not less, so that ties count, and so does what is NaN.
        count.index_add_(0, i, (~(pair_similarities(left, bank, i, j + start) < mine[i])).to(count.dtype))
    return count
