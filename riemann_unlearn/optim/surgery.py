r"""Gradients of two losses on manifolds: where they disagree, and what is left of one without the other.

A step along :math:`-r_1` raises a second loss, to first order, by :math:`-\langle r_1, r_2\rangle` times its
length. Where that is positive, the part of :math:`r_1` against :math:`r_2` is taken out (Yu et al. 2020,
"Gradient Surgery for Multi-Task Learning"), in the metric of the manifold:

.. math::

    r_1 \leftarrow r_1 - \frac{\langle r_1, r_2\rangle}{\langle r_2, r_2\rangle}\, r_2
    \qquad\text{where } \langle r_1, r_2\rangle < 0 .

The Riemannian gradient is linear in the Euclidean one, so the result can be given as a Euclidean gradient,
which is what optimizers take: only the inner products need the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import geoopt
import torch
from torch import Tensor

from riemann_unlearn.optim.batching import manifold_of

Gradients = Sequence[Tensor | None]


def riemannian_inner(params: Sequence[Tensor], first: Gradients, second: Gradients) -> Tensor:
    """Inner product of two Riemannian gradients, summed over parameters.

    Parameters
    ----------
    params : sequence of Tensor
        Parameters, on manifolds or not.
    first, second : sequence of Tensor or None
        Euclidean gradients at ``params``, as ``torch.autograd.grad`` gives them; None counts as 0.

    Returns
    -------
    Tensor, shape ()
        float64, on the device of the first parameter.

    Examples
    --------
    >>> import torch
    >>> p, g, h = torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    >>> riemannian_inner([p], [g], [h]).item()
    1.0
    """
    # In float64, so that large parameters do not drown small ones.
    total = torch.zeros((), dtype=torch.float64, device=params[0].device if params else None)
    for p, g, h in zip(params, first, second, strict=True):
        if g is not None and h is not None:
            total = total + _inner(p.detach(), manifold_of(p), g, h).to(total)
    return total


def project_conflicting(
    params: Sequence[Tensor], gradients: Gradients, against: Gradients
) -> list[Tensor | None]:
    """``gradients`` without the part of them that works against another loss's gradients.

    Parameters
    ----------
    params : sequence of Tensor
        Parameters, on manifolds or not.
    gradients : sequence of Tensor or None
        Euclidean gradients of the loss to be lowered.
    against : sequence of Tensor or None
        Euclidean gradients of the loss that must not rise.

    Returns
    -------
    list of Tensor or None
        Euclidean gradients whose Riemannian gradients have no negative inner product with those of
        ``against``; where there was no conflict, ``gradients`` as they were.

    Examples
    --------
    >>> import torch
    >>> p = torch.zeros(2)
    >>> project_conflicting([p], [torch.tensor([1.0, 1.0])], [torch.tensor([-2.0, 0.0])])
    [tensor([0., 1.])]
    """
    conflict = riemannian_inner(params, gradients, against)
    size = riemannian_inner(params, against, against)
    # Without a host synchronisation: the share is 0 where nothing conflicts.
    share = torch.where((conflict < 0) & (size > 0), conflict / torch.where(size > 0, size, 1.0), 0.0)
    result: list[Tensor | None] = []
    for g, h in zip(gradients, against, strict=True):
        if h is None:
            result.append(g)
        else:
            taken = h * share.to(h)
            result.append(-taken if g is None else g - taken)
    return result


class GradientSurgery:
    """An optimizer's ``backward``: lower one loss without raising another.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any; its parameters may be on manifolds or not.

    Examples
    --------
    >>> import torch
    >>> import riemann_unlearn as ru
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> optimizer = ru.optim.RiemannianSGD([w], lr=0.5)
    >>> surgery = ru.optim.GradientSurgery(optimizer)
    >>> surgery.backward(forget=-w.sum(), retain=w[0] * 2)
    >>> w.grad
    tensor([ 2., -1.])
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def params(self) -> list[Tensor]:
        """The optimizer's parameters, in order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def backward(self, forget: Tensor, retain: Tensor) -> None:
        """Set gradients to the retain loss's plus what of the forget loss's does not conflict with it.

        Parameters
        ----------
        forget, retain : Tensor, shape ()
            Two losses; their graphs are freed.
        """
        params = self.params
        options: dict[str, Any] = {"allow_unused": True}
        # The losses share most of a graph, which the first must leave to the second. Neither touches p.grad:
        # a step's gradients are set below, not added to what a former one left.
        lowered = torch.autograd.grad(forget, params, retain_graph=True, **options)
        protected = torch.autograd.grad(retain, params, **options)
        kept = project_conflicting(params, lowered, protected)
        for p, g, h in zip(params, kept, protected, strict=True):
            p.grad = g if h is None else h if g is None else g + h

    def step(self, forget: Tensor, retain: Tensor) -> None:
        """:meth:`backward`, and a step of the optimizer."""
        self.backward(forget, retain)
        self.optimizer.step()


def clip_grad_norm_(params: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale gradients down until the length of the Riemannian gradient is at most ``max_norm``, in place.

    Parameters
    ----------
    params : sequence of Tensor
        Parameters, on manifolds or not; those without a gradient are left out.
    max_norm : float
        The largest length.

    Returns
    -------
    Tensor, shape ()
        The length before, float64.

    Examples
    --------
    >>> import torch
    >>> p = torch.nn.Parameter(torch.zeros(2))
    >>> p.grad = torch.tensor([3.0, 4.0])
    >>> clip_grad_norm_([p], 1.0).item(), p.grad
    (5.0, tensor([0.6000, 0.8000]))
    """
    params = [p for p in params if p.grad is not None]
    gradients = [cast(Tensor, p.grad) for p in params]
    size = riemannian_inner(params, gradients, gradients).clamp_min(0).sqrt()
    # One factor for all, so that the direction is kept. No branch, so that the host waits for no device.
    scale = torch.where(size > max_norm, max_norm / size, 1.0)
    for gradient in gradients:
        gradient.mul_(scale.to(gradient))
    return size


def _inner(p: Tensor, manifold: geoopt.Manifold | None, g: Tensor, h: Tensor) -> Tensor:
    """Inner product of the Riemannian gradients of Euclidean gradients g and h at p."""
    if manifold is None:
        return (g.double() * h.double()).sum()
    if isinstance(manifold, geoopt.Lorentz):
        # <Jg + ap, Jh + bp> = g·Jh + k·ab with a = c p·g: nothing of the size of the points cancels.
        point, g, h = p.double(), g.double(), h.double()
        k: Tensor = manifold.k.detach().to(point)
        a, b = ((point * each).sum(-1) / k for each in (g, h))
        return ((g * h).sum(-1) - 2 * g[..., 0] * h[..., 0] + k * a * b).sum()
    # Copies, for some of geoopt's manifolds write into the gradient that they are given.
    first = manifold.egrad2rgrad(p, g.clone())
    second = manifold.egrad2rgrad(p, h.clone())
    return cast(Tensor, manifold.inner(p, first, second)).sum()
