"""Riemannian stochastic gradient descent, with momentum transported along the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import geoopt
import torch
from torch import Tensor
from torch.optim.sgd import sgd

from riemann_unlearn.optim import curvature, generic, lorentz
from riemann_unlearn.optim.base import RiemannianOptimizer, sparse_id
from riemann_unlearn.optim.batching import batches
from riemann_unlearn.optim.lorentz import Scalar


class RiemannianSGD(RiemannianOptimizer):
    r"""Stochastic gradient descent on any mixture of Euclidean and manifold parameters.

    :math:`b \leftarrow μ\,b + (1-τ)\,r`, :math:`p \leftarrow \operatorname{Exp}_p(-\text{lr}\,b)` with the
    Riemannian gradient r; b is transported to the new p. Bitwise ``torch.optim.SGD`` on Euclidean
    parameters; without momentum, ``geoopt.optim.RiemannianSGD`` on the others.

    Parameters
    ----------
    params : iterable of Tensor or of dict
        Parameters or parameter groups.
    lr : float or Tensor
        Learning rate.
    momentum : float
        μ.
    dampening : float
        τ.
    weight_decay : float
        L2 penalty on the coordinates, as in geoopt and torch.
    nesterov : bool
        Step along r + μ b.
    stabilize, retraction, max_step, lazy, foreach, maximize, differentiable, fused
        As in :class:`RiemannianAdam`.

    Raises
    ------
    ValueError
        For an option out of range.
    RuntimeError
        For ``differentiable=True``.

    Notes
    -----
    The momentum of a manifold parameter starts as its Riemannian gradient, as torch's starts as the
    gradient; geoopt 0.5.1 starts it as μ times the Euclidean gradient plus (1-τ) r, which is no tangent
    vector.

    Examples
    --------
    >>> import geoopt, torch
    >>> import riemann_unlearn as ru
    >>> manifold = ru.Lorentz()
    >>> point = geoopt.ManifoldParameter(manifold.expmap0(torch.tensor([0.0, 3.0, 4.0])), manifold)
    >>> optimizer = ru.optim.RiemannianSGD([point], lr=0.5)
    >>> (manifold.dist0(point).square() / 2).backward()
    >>> optimizer.step()
    >>> round(manifold.dist0(point).item(), 4)
    2.5
    """

    _momentum_name = "momentum_buffer"

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        stabilize: int | None = None,
        retraction: bool = True,
        max_step: float | None = None,
        lazy: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "stabilize": stabilize,
            "retraction": retraction,
            "max_step": max_step,
            "lazy": lazy,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
            # In the group, as geoopt has it: SGD has no count for each parameter.
            "step": 0,
        }
        super().__init__(params, defaults)

    def _step_euclidean(self, group: dict[str, Any], params: list[Tensor]) -> None:
        gradients = [cast(Tensor, p.grad) for p in params]
        buffers: list[Tensor | None] = [self.state[p].get("momentum_buffer") for p in params]
        sparse = any(gradient.is_sparse for gradient in gradients)
        sgd(
            params,
            gradients,
            buffers,
            has_sparse_grad=sparse,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            foreach=group["foreach"],
            fused=group["fused"] and not sparse,
        )
        if group["momentum"] != 0:
            # torch puts first buffers into the list that it was given, not into the state.
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer

    def _step_manifolds(self, group: dict[str, Any], params: list[Tensor]) -> None:
        group["step"] += 1
        started = {p: "momentum_buffer" in self.state[p] for p in params}
        names = ["momentum_buffer"] if group["momentum"] != 0 else []
        if names:
            for p in params:
                if not started[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        together = group["foreach"] is not False
        # First momenta are not damped, so those that start are no batch with those that go on.
        for batch in batches(params, lambda p: (started[p], sparse_id(p)), together):
            self._step_batch(group, batch, names, 1.0 if started[batch[0]] else 0.0)
        every = group["stabilize"]
        if every is not None and group["step"] % every == 0 and group["lr"] != 0:
            self.stabilize_group(group)

    def _advance(
        self,
        group: dict[str, Any],
        manifold: geoopt.Manifold,
        stacks: list[Tensor],
        gradients: Tensor,
        count: Scalar,
        closed_form: bool,
    ) -> None:
        points = stacks[0]
        momenta = stacks[1] if len(stacks) > 1 else None
        longest = math.inf if group["max_step"] is None else group["max_step"]
        # A first momentum is the gradient, undamped; rows of a table that were not touched yet hold 0.
        dampening = group["dampening"] if count else 0.0
        lr = group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"]
        if closed_form:
            lorentz.sgd_rows(
                points,
                gradients,
                momenta,
                curvature.scalar_k(manifold, points),
                lr=lr,
                momentum=group["momentum"],
                dampening=dampening,
                nesterov=group["nesterov"],
                longest=longest,
            )
            return
        # A copy, for geoopt's Lorentz flips the sign of the gradient's time in place.
        direction = manifold.egrad2rgrad(points, gradients.clone())
        if momenta is not None:
            # In tangent vectors: the momentum was carried to this point at the end of the last step.
            momenta.mul_(group["momentum"]).add_(direction, alpha=1 - dampening)
            direction = direction.add(momenta, alpha=group["momentum"]) if group["nesterov"] else momenta
        if lr == 0:
            return  # a manifold's own map of the zero vector may round the point
        new_points, new_momenta = generic.follow(
            manifold,
            points,
            direction * -lr,
            # The maps want a vector to carry. Without momentum any will do; the result is dropped.
            direction if momenta is None else momenta,
            retraction=group["retraction"],
            longest=longest,
        )
        points.copy_(new_points)
        if momenta is not None:
            momenta.copy_(new_momenta)
