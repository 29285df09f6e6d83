"""Which parameters are stepped together, and as what.

Parameters on no manifold, or on a flat one that treats each coordinate alone, are Euclidean: torch's own
kernels step them. Points on a Lorentz manifold become rows of one matrix for the closed-form step of
:mod:`riemann_unlearn.optim.lorentz`; parameters on any other manifold go through the manifold's own maps,
batched where they share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain

import geoopt
import torch
from torch import Tensor


def manifold_of(parameter: Tensor) -> geoopt.Manifold | None:
    """The manifold of a parameter; None when torch's kernels are to step it."""
    manifold = getattr(parameter, "manifold", None)
    # geoopt.Euclidean(ndim=1) has a norm for each vector, and so one second moment a vector: not torch's.
    if manifold is None or (isinstance(manifold, geoopt.Euclidean) and manifold.ndim == 0):
        return None
    return manifold


def manifold_of_point(parameter: Tensor) -> geoopt.Manifold:
    """The manifold of a parameter that :func:`manifold_of` has found to be on one."""
    return parameter.manifold  # type: ignore[attr-defined]


def is_lorentz(parameter: Tensor) -> bool:
    """Whether the closed-form step takes the parameter."""
    manifold = manifold_of(parameter)
    return (
        isinstance(manifold, geoopt.Lorentz)
        and manifold.k.numel() == 1
        and parameter.dtype in (torch.float32, torch.float64)
    )


def batches(
    parameters: Iterable[Tensor], distinguish: Callable[[Tensor], Hashable], together: bool
) -> list[list[Tensor]]:
    """Split manifold parameters into lists that can be stepped as one.

    Parameters
    ----------
    parameters : iterable of Tensor
    distinguish : callable
        What else two parameters of a batch must agree in, such as the number of their steps.
    together : bool
        False makes every parameter a batch of its own.
    """
    # In the order of the parameters, so that a step is the same from run to run.
    groups: dict[Hashable, list[Tensor]] = {}
    # Looked up once for each manifold, not for each of perhaps thousands of parameters.
    spaces: dict[int, tuple[Hashable, int]] = {}
    for parameter in parameters:
        manifold = manifold_of_point(parameter)
        if id(manifold) not in spaces:
            spaces[id(manifold)] = _space_key(manifold), manifold.ndim
        space, ndim = spaces[id(manifold)]
        key: Hashable = id(parameter)
        # Parameters may differ in how many points they hold, not in the shape of one.
        if together and space is not None:
            shape = parameter.shape
            key = space, shape[len(shape) - ndim :], parameter.dtype, parameter.device, distinguish(parameter)
        groups.setdefault(key, []).append(parameter)
    return list(groups.values())


def stacked(tensors: Sequence[Tensor], point_ndim: int) -> Tensor:
    """The tensors' points one after another, shape (N, ...); of one tensor, its own memory."""
    rows = [
        tensor
        if tensor.ndim == point_ndim + 1
        else tensor.reshape(-1, *tensor.shape[tensor.ndim - point_ndim :])
        for tensor in tensors
    ]
    # reshape and contiguous return their argument where they can, so one tensor is stepped where it lies.
    return rows[0].contiguous() if len(rows) == 1 else torch.cat(rows)


def views(stack: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a stack, in the shapes of the tensors it was made of."""
    point_ndim = stack.ndim - 1
    counts = [math.prod(tensor.shape[: tensor.ndim - point_ndim]) for tensor in tensors]
    parts = torch.split(stack, counts)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def scatter(stack: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write a stack back into the tensors it was made of."""
    torch._foreach_copy_(list(tensors), views(stack, tensors))


def _space_key(manifold: geoopt.Manifold) -> Hashable | None:
    """Equal for manifolds that are the same space; None where points cannot be stacked.

    A curvature off the CPU is not looked at: that would wait for the device.
    """
    if not is_uniform(manifold):
        return None
    if isinstance(manifold, geoopt.Lorentz) and manifold.k.device.type == "cpu":
        # Layers often have a manifold each, of the same fixed k: one space. A learnable k may differ from
        # its equal after the next step, and keeps to its own.
        return manifold.k.item(), manifold.k.requires_grad and id(manifold)
    return id(manifold)


_ROWWISE = (
    geoopt.Lorentz,
    geoopt.Stereographic,
    geoopt.Sphere,
    geoopt.Stiefel,
    geoopt.Euclidean,
    geoopt.SymmetricPositiveDefinite,
)
"""Manifolds whose methods take the points of a stack one by one, and whose inner product has an axis of one
for each axis of a point. geoopt has others: the inner product of Siegel's domains has one axis too few, and
broadcasts against the wrong one; the projection on Birkhoff's polytope goes on until the last point is there.
"""


def is_uniform(manifold: geoopt.Manifold) -> bool:
    """Whether points can be stacked: the manifold treats each of them as it would alone, and all alike.

    What is not known to do so is stepped parameter by parameter, as geoopt does.
    """
    if isinstance(manifold, geoopt.ProductManifold):
        return all(is_uniform(part) for part in manifold.manifolds)
    base = manifold
    while isinstance(base, geoopt.Scaled):
        base = base.base
    if base is not manifold and isinstance(base, geoopt.ProductManifold):
        return False
    # A tensor with an entry for each point belongs to its points by position, which stacking changes.
    tensors = chain(manifold.parameters(), manifold.buffers())
    return isinstance(base, _ROWWISE) and all(tensor.numel() == 1 for tensor in tensors)
