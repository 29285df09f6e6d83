r"""Everything the contrastive losses need of all pairs of a batch, in one pass and linear memory.

With s the negative geodesic distance of tangent vectors at the origin (or the cosine), R the retain pairs of
the batch and U its forget pairs, the op gives

.. math::

    \text{matched}_a &= s_{aa} \\
    \text{rows}_a &= \log \sum_b e^{τ s_{ab}}, \qquad \text{columns}_b = \log \sum_a e^{τ s_{ab}} \\
    \text{negative} &= \operatorname{mean}_{a \ne b \in U} s_{ab}

where the sums of a retain pair run over R, as L_con asks, and those of a forget pair over the whole batch, as
L_perf does. So L_con, L_neg, L_pos and L_perf of AC and HAC are a few operations on vectors more. Pairs with
equal caption ids are no negatives: they take no part in the sums of retain pairs, nor in the mean.

The B×B matrix is never held. Tiles of it are made by a matrix product, reduced, and made again in the
backward pass: four products of B·B·D in all, where three are the least a gradient can cost. Matched pairs are
computed from differences, which is accurate however near they are. Per element and pass it takes one square
root, one logarithm and one exponential: cosh D - 1 comes from the product itself
(:mod:`riemann_unlearn.ops.polar`), and sinh D is a square root.

On the CPU tiles are torch operations on buffers that stay in the caches (
:mod:`riemann_unlearn.ops.contrastive_tiled`); on CUDA they are Triton kernels; elsewhere the plain
:func:`reference` serves.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from riemann_unlearn.geometry import tangent
from riemann_unlearn.geometry.precision import Curvature, widen
from riemann_unlearn.ops import contrastive_tiled as tiled
from riemann_unlearn.ops.backend import as_scalar, backend
from riemann_unlearn.ops.contrastive_layout import Problem, Statistics, most_tiles

__all__ = ["Contrastive", "contrastive", "from_similarities", "reference"]


class Contrastive(NamedTuple):
    """What :func:`contrastive` returns; float64 on devices that have it."""

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


def contrastive(
    x: Tensor,
    y: Tensor,
    scale: Curvature,
    c: Curvature | None = None,
    *,
    forget: Tensor | None = None,
    caption_ids: Tensor | None = None,
    offset: int = 0,
) -> Contrastive:
    r"""Matched similarities, row and column log-sum-exps, and the mean over mismatched forget pairs.

    Parameters
    ----------
    x : Tensor, shape (N, D)
        One side's features.
    y : Tensor, shape (M, D)
        The other side's, M ≥ N: row a of ``x`` belongs to row ``offset + a``. In distributed training ``x``
        are the local features and ``y`` the gathered ones; then ``columns`` are partial, and their
        log-sum-exp over the processes is whole.
    scale : float or Tensor
        τ ≥ 0.
    c : float or Tensor, optional
        Curvature magnitude, c > 0: features are tangent vectors at the origin. Without it they are
        compared by their cosine.
    forget : Tensor, shape (M,), optional
        bool; which pairs are forget pairs. None by default.
    caption_ids : Tensor, shape (M,), optional
        Integers; pairs with equal ids mean the same.
    offset : int
        Where the rows' own columns begin.

    Returns
    -------
    Contrastive

    Raises
    ------
    TypeError
        For features that are not floating point.
    ValueError
        For shapes that do not fit, or a number ``c`` that is not positive.

    Notes
    -----
    Half-precision features are computed in float32, also under autocast. In float32 a tile whose pairs a
    product cannot tell apart, or whose radii exceed its range, is computed in float64; results and gradients
    are then as accurate as everywhere else, and take several times as long. Second derivatives are not
    available; :func:`reference` has them.

    Examples
    --------
    >>> import torch
    >>> v = 2 * torch.eye(3)
    >>> found = contrastive(v, v, scale=1.0, c=1.0)
    >>> found.matched, found.rows.round(decimals=3)
    (tensor([-0., -0., -0.], dtype=torch.float64), tensor([0.0680, 0.0680, 0.0680], dtype=torch.float64))
    """
    check(x, y, forget, caption_ids, offset)
    x, y = widen(x), widen(y)
    dtype = torch.promote_types(x.dtype, y.dtype)
    x, y = x.to(dtype), y.to(dtype)
    if backend(x.device) == "reference":
        return reference(x, y, scale, c, forget=forget, caption_ids=caption_ids, offset=offset)
    tau, curvature = as_scalar(scale, x), as_scalar(1.0 if c is None else c, x, curvature=True)
    found = _forward(x, y, tau, curvature, forget, caption_ids, offset, c is not None)
    return Contrastive(*found[:5])


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
    retained = ~drop[own, None] & ~drop & (itself | ~same)
    logits = scale * s + bias
    by_row = normalizer(logits, retained | drop[own, None], 1)
    by_column = normalizer(logits, retained | drop, 0)
    negatives = drop[own, None] & drop & ~same
    pairs = negatives.sum()
    negative = torch.where(negatives, s, 0.0).sum() / pairs.clamp(min=1)
    return Contrastive(s.diagonal(offset), by_row, by_column, negative, pairs.to(s.dtype))


_PROBLEM = (
    "Tensor x, Tensor y, Tensor scale, Tensor c, Tensor? forget, Tensor? caption_ids, int offset, "
    "bool hyperbolic"
)


@torch.library.custom_op(
    "riemann_unlearn::contrastive",
    mutates_args=(),
    schema=f"({_PROBLEM}) -> ({', '.join(['Tensor'] * len(Statistics._fields))})",
)
def _forward(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    c: Tensor,
    forget: Tensor | None,
    caption_ids: Tensor | None,
    offset: int,
    hyperbolic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = Problem(x, y, scale, c, forget, caption_ids, offset, hyperbolic)
    with torch.autocast(x.device.type, enabled=False):
        return tuple(implementation(x).forward(problem))


@_forward.register_fake
def _(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    c: Tensor,
    forget: Tensor | None,
    caption_ids: Tensor | None,
    offset: int,
    hyperbolic: bool,
) -> tuple[Tensor, ...]:
    return fake(x, y)


@torch.library.custom_op(
    "riemann_unlearn::contrastive_backward",
    mutates_args=(),
    schema=f"({_PROBLEM}, Tensor[] found, Tensor[] of) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    c: Tensor,
    forget: Tensor | None,
    caption_ids: Tensor | None,
    offset: int,
    hyperbolic: bool,
    found: list[Tensor],
    of: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = Problem(x, y, scale, c, forget, caption_ids, offset, hyperbolic)
    with torch.autocast(x.device.type, enabled=False):
        return tuple(implementation(x).backward(problem, Statistics(*found), of))


@_backward.register_fake
def _(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    c: Tensor,
    forget: Tensor | None,
    caption_ids: Tensor | None,
    offset: int,
    hyperbolic: bool,
    found: list[Tensor],
    of: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y), torch.empty_like(scale), torch.empty_like(c)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, scale, c, forget, caption_ids, ctx.offset, ctx.hyperbolic = inputs
    ctx.mark_non_differentiable(*output[4:])
    ctx.save_for_backward(x, y, scale, c, forget, caption_ids, *output)


def _gradients(ctx: Any, *of: Tensor) -> tuple[Tensor | None, ...]:
    x, y, scale, c, forget, caption_ids, *found = ctx.saved_tensors
    gradients = _backward(
        x, y, scale, c, forget, caption_ids, ctx.offset, ctx.hyperbolic, list(found), list(of[:4])
    )
    return *gradients, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def fake(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """What the forward pass would return, without its values."""
    n, m = x.shape[0], y.shape[0]
    shapes = ((n,), (n,), (m,), (), (), (most_tiles(n, m),), (n,), (n,), (m,))
    return tuple(x.new_empty(shape, dtype=torch.float64) for shape in shapes)


def implementation(x: Tensor) -> Any:
    """The module that serves the device of ``x``; Triton is imported only where it runs."""
    return (
        tiled if x.device.type == "cpu" else importlib.import_module("riemann_unlearn.ops.contrastive_triton")
    )


def check(x: Tensor, y: Tensor, forget: Tensor | None, caption_ids: Tensor | None, offset: int) -> None:
    """Raise ValueError for arguments of the op that do not fit."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"expected features of shapes (N, D) and (M, D), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not 0 <= offset <= len(y) - len(x):
        raise ValueError(
            f"rows {offset} to {offset + len(x)} of the second features should be the first's own, and there "
            f"are {len(y)}"
        )
    if forget is not None and (forget.dtype != torch.bool or forget.shape != (len(y),)):
        raise ValueError(
            f"forget must be a bool tensor of shape ({len(y)},), got {forget.dtype} of {tuple(forget.shape)}"
        )
    if caption_ids is not None and (caption_ids.is_floating_point() or caption_ids.shape != (len(y),)):
        raise ValueError(
            f"caption_ids must be an integer tensor of shape ({len(y)},), got {caption_ids.dtype} of "
            f"{tuple(caption_ids.shape)}"
        )
