"""The contrastive op in a few lines of torch, with the matrix: what the others are held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from riemann_unlearn.geometry import tangent
from riemann_unlearn.geometry.precision import Curvature, widen


class Contrastive(NamedTuple):
    """What the op returns; float64 on devices that have it."""

    matched: Tensor
    """s of each row and its own column, shape (N,)."""
    rows: Tensor
    """Log-sum-exp of each row, shape (N,)."""
    columns: Tensor
    """Log-sum-exp of each column over the given rows, shape (M,); -inf where there is nothing to sum."""
    negative: Tensor
    """Mean s of the mismatched forget pairs, shape (); 0 where there are none."""
    pairs: Tensor
    """How many mismatched forget pairs there are, shape (); takes no gradient."""


def reference(
    x: Tensor,
    y: Tensor,
    scale: Curvature,
    c: Curvature | None = None,
    *,
    forget: Tensor | None = None,
    caption_ids: Tensor | None = None,
    offset: int = 0,
) -> Contrastive:
    """The same in a few lines of torch, with the matrix; :func:`contrastive` is held to it."""
    own = torch.arange(offset, offset + len(x), device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        if c is None:
            a, b = (torch.nn.functional.normalize(widen(v), dim=-1) for v in (x, y))
            s, matched = a @ b.mT, (a * b[own]).sum(-1)
        else:
            s, matched = -tangent.cdist(x, y, c), -tangent.dist(x, y[own], c)
    # Matched pairs are measured one by one: near ones would lose their digits in a matrix product.
    s = s.index_put((torch.arange(len(x), device=x.device), own), matched.to(s.dtype))
    return from_similarities(s, scale, forget=forget, caption_ids=caption_ids, offset=offset)


def log_sum_exp(logits: Tensor, among: Tensor, dim: int) -> Tensor:
    """The normalizer of a softmax over the pairs ``among``, along an axis; -inf where there are none."""
    some = among.any(dim, keepdim=True)
    # A sum without terms is taken over zeros and replaced afterwards: its own gradient would be NaN.
    masked = torch.where(among, logits, -math.inf).masked_fill(~some, 0.0)
    return masked.logsumexp(dim).masked_fill(~some.squeeze(dim), -math.inf)


def from_similarities(
    s: Tensor,
    scale: Curvature,
    bias: Curvature = 0.0,
    *,
    forget: Tensor | None = None,
    caption_ids: Tensor | None = None,
    offset: int = 0,
    normalizer: Callable[[Tensor, Tensor, int], Tensor] = log_sum_exp,
) -> Contrastive:
    """The same from the matrix of similarities, shape (N, M), for geometries that have no other way.

    ``normalizer`` takes the logits τ·s + bias, which of them count, and an axis, and gives the logarithms of
    the normalizers along it.
    """
    n, m = s.shape
    own = torch.arange(offset, offset + n, device=s.device)
    itself = own[:, None] == torch.arange(m, device=s.device)
    same = itself if caption_ids is None else caption_ids[own, None] == caption_ids
    drop = torch.zeros(m, dtype=torch.bool, device=s.device) if forget is None else forget
    # Retain pairs among themselves, each with itself and with what means something else.
    retained = ~drop[own, None] & ~drop & (itself | ~same)
    logits = scale * s + bias
    by_row = normalizer(logits, retained | drop[own, None], 1)
    by_column = normalizer(logits, retained | drop, 0)
    # Captions that mean the same are no mismatch, though both be forgotten.
    negatives = drop[own, None] & drop & ~same
    pairs = negatives.sum()
    # With no pairs the mean is 0/1: 0, with gradient 0, where 0/0 would be NaN.
    negative = torch.where(negatives, s, 0.0).sum() / pairs.clamp(min=1)
    return Contrastive(s.diagonal(offset), by_row, by_column, negative, pairs.to(s.dtype))
