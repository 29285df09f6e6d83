r"""Everything the contrastive losses need of all pairs of a batch, in one pass and linear memory.

With s the negative geodesic distance of tangent vectors at the origin (or the cosine), R the retain pairs of
the batch and U its forget pairs, the op gives

.. math::

    \text{matched}_a &= s_{aa} \\
    \text{rows}_a &= \log \sum_b e^{τ s_{ab}}, \qquad \text{columns}_b = \log \sum_a e^{τ s_{ab}} \\
    \text{negative} &= \operatorname{mean}_{a \ne b \in U} s_{ab}

where the sums of a retain pair run over R, and those of a forget pair over the whole batch. The terms of a
loss are a few operations on these vectors more (:mod:`riemann_unlearn.losses.functional`). Pairs with equal
caption ids are no negatives: they take no part in the sums of retain pairs, nor in the mean.

The B×B matrix is never held. Tiles of it are made by a matrix product, reduced, and made again in the
backward pass: four products of B·B·D in all, where three are the least a gradient can cost. Matched pairs are
computed from differences, which is accurate however near they are. Per element and pass it takes one square
root, one logarithm and one exponential: cosh D - 1 comes from the product itself
(:mod:`riemann_unlearn.ops.polar`), and sinh D is a square root.

On the CPU tiles are torch operations on buffers that stay in the caches (``tiled``), with compiled passes
between the products where numba is (``numba``); on CUDA they are Triton kernels (``triton``); elsewhere plain
torch serves, with the matrix (``definition``). ``layout`` says how a problem is cut into tiles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature, widen
from riemann_unlearn.ops.backend import Backend, as_scalar, derivatives, has_numba, has_triton, implementation
from riemann_unlearn.ops.contrastive.definition import Contrastive, reference
from riemann_unlearn.ops.contrastive.layout import Problem, Statistics, most_tiles
from riemann_unlearn.registry import register

_HOME = "riemann_unlearn.ops.contrastive."
register(Backend("contrastive", "reference", _HOME + "definition", derivatives=2))
register(Backend("contrastive", "tiled", _HOME + "tiled", devices=("cpu",), derivatives=1))
register(
    Backend("contrastive", "numba", _HOME + "numba", devices=("cpu",), derivatives=1, available=has_numba)
)
register(
    Backend("contrastive", "triton", _HOME + "triton", devices=("cuda",), derivatives=1, available=has_triton)
)


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
    >>> batch = contrastive(v, v, scale=1.0, c=1.0)
    >>> batch.matched, batch.rows.round(decimals=3)
    (tensor([-0., -0., -0.], dtype=torch.float64), tensor([0.0680, 0.0680, 0.0680], dtype=torch.float64))
    """
    _check(x, y, forget, caption_ids, offset)
    x, y = widen(x), widen(y)
    # One product takes one dtype; a float64 side is not rounded to the other's.
    dtype = torch.promote_types(x.dtype, y.dtype)
    x, y = x.to(dtype), y.to(dtype)
    if derivatives("contrastive", x.device.type, dtype) > 1:
        return reference(x, y, scale, c, forget=forget, caption_ids=caption_ids, offset=offset)
    # An operator of torch.library takes tensors: numbers become such, and a missing curvature is not read.
    tau, curvature = as_scalar(scale, x), as_scalar(1.0 if c is None else c, x, curvature=True)
    statistics = _forward(x, y, tau, curvature, forget, caption_ids, offset, c is not None)
    return Contrastive(*statistics[:5])


# The arguments of :class:`Problem`, in its order.
_PROBLEM = (
    "Tensor x, Tensor y, Tensor scale, Tensor c, Tensor? forget, Tensor? caption_ids, int offset, "
    "bool hyperbolic"
)


@torch.library.custom_op(
    "riemann_unlearn::contrastive",
    mutates_args=(),
    schema=f"({_PROBLEM}) -> ({', '.join(['Tensor'] * len(Statistics._fields))})",
)
def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    problem = Problem(*arguments)
    # Autocast would take the products in half precision.
    with torch.autocast(problem.x.device.type, enabled=False):
        return tuple(implementation("contrastive", problem.x).forward(problem))


@_forward.register_fake
def _(x: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, ...]:
    n, m = x.shape[0], y.shape[0]
    # As Statistics has them. Sizes depend on shapes alone, never on how many pairs are forgotten.
    shapes = ((n,), (n,), (m,), (), (), (most_tiles(n, m), 2), (n,), (n,), (m,))
    return tuple(x.new_empty(shape, dtype=torch.float64) for shape in shapes)


@torch.library.custom_op(
    "riemann_unlearn::contrastive_backward",
    mutates_args=(),
    schema=f"({_PROBLEM}, Tensor[] statistics, Tensor[] grads) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    *parts, statistics, grads = arguments
    problem = Problem(*parts)
    with torch.autocast(problem.x.device.type, enabled=False):
        backend = implementation("contrastive", problem.x)
        return tuple(backend.backward(problem, Statistics(*statistics), grads))


@_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(map(torch.empty_like, arguments[:4]))  # x, y, τ and c


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, scale, c, forget, caption_ids, ctx.offset, ctx.hyperbolic = inputs
    # The number of pairs, and what only the backward pass reads.
    ctx.mark_non_differentiable(*output[4:])
    # Features and vectors: the tiles are made again rather than kept.
    ctx.save_for_backward(x, y, scale, c, forget, caption_ids, *output)


def _gradients(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    x, y, scale, c, forget, caption_ids, *statistics = ctx.saved_tensors
    # Of the first four results: the fifth is a count, and the others are none of the user's.
    gradients = _backward(
        x, y, scale, c, forget, caption_ids, ctx.offset, ctx.hyperbolic, statistics, list(grads[:4])
    )
    return *gradients, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _check(x: Tensor, y: Tensor, forget: Tensor | None, caption_ids: Tensor | None, offset: int) -> None:
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
