r"""Riemannian Adam: geoopt's semantics at the speed of torch's kernels.

With the Riemannian gradient r at p, the moments and the step are

.. math::

    m \leftarrow β_1 m + (1-β_1)\,r,\qquad v \leftarrow β_2 v + (1-β_2)\,\|r\|^2,\qquad
    p \leftarrow \operatorname{Exp}_p\!\Big(-\text{lr}\,
        \frac{m/(1-β_1^t)}{\sqrt{v/(1-β_2^t)}+ε}\Big),

after which m is transported to the new p. v is one number a point (Bécigneul & Ganea 2019): a coordinate
has no meaning of its own on a manifold. On Euclidean parameters this is Adam, and torch computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import geoopt
import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from riemann_unlearn.optim import curvature, generic, lorentz
from riemann_unlearn.optim.base import RiemannianOptimizer, sparse_id
from riemann_unlearn.optim.batching import batches, manifold_of, manifold_of_point
from riemann_unlearn.optim.lorentz import Scalar


class RiemannianAdam(RiemannianOptimizer):
    r"""Adam on any mixture of Euclidean and manifold parameters.

    A drop-in for ``geoopt.optim.RiemannianAdam`` (the state dicts of the two can be exchanged) and for
    ``torch.optim.Adam`` (bitwise the same on Euclidean parameters).

    Parameters
    ----------
    params : iterable of Tensor or of dict
        Parameters or parameter groups; a group may set every option for itself.
    lr : float or Tensor
        Learning rate: the geodesic length of a first step.
    betas : (float, float)
        Decay of the two moments.
    eps : float
        Added to the root of the second moment.
    weight_decay : float
        L2 penalty on the coordinates, added to the gradient as in geoopt and torch. For a decay that means
        something on a manifold see :class:`RiemannianAdamW`.
    amsgrad : bool
        Divide by the largest second moment so far.
    stabilize : int, optional
        Project parameters and momenta every so many steps. Lorentz parameters have no need of it.
    retraction : bool
        Move by the manifold's ``retr_transp``, as geoopt does; False by its ``expmap_transp``. On Lorentz
        manifolds both are the exponential map.
    max_step : float, optional
        Cap of the geodesic length of one step.
    lazy : bool
        Leave alone, moments included, the points of a batch whose gradient is exactly zero: for embedding
        tables of which a step touches few rows. A sparse gradient is always taken so.
    foreach : bool, optional
        torch's option for Euclidean parameters; False also steps manifold parameters one by one.
    maximize : bool
        Ascend.
    capturable : bool
        Keep step counts on the parameters' device, so that a step never waits for it.
    differentiable : bool
        Not supported.
    fused : bool, optional
        torch's option for Euclidean parameters. By default where torch has the kernel, unless ``foreach``
        is given.

    Raises
    ------
    ValueError
        For an option out of range.
    RuntimeError
        For ``differentiable=True``, and for a sparse gradient of a Euclidean parameter.

    Notes
    -----
    Lorentz parameters stay on the upper sheet by construction, to the rounding of their coordinates, after
    any number of steps. A step that would lead beyond the radius at which the dtype's coordinates hold no
    direction any more (15.9 in float32, 36.0 in float64) is cut short there.

    Examples
    --------
    >>> import geoopt, torch
    >>> import riemann_unlearn as ru
    >>> manifold = ru.Lorentz()
    >>> target = manifold.expmap0(torch.tensor([0.0, 1.0, 2.0]))
    >>> point = geoopt.ManifoldParameter(manifold.origin(3))
    >>> optimizer = ru.optim.RiemannianAdam([point], lr=0.1)
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     manifold.dist(point, target).square().backward()
    ...     optimizer.step()
    >>> bool(manifold.dist(point, target) < 1e-3)
    True
    """

    _decoupled = False
    _momentum_name = "exp_avg"

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        stabilize: int | None = None,
        retraction: bool = True,
        max_step: float | None = None,
        lazy: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "stabilize": stabilize,
            "retraction": retraction,
            "max_step": max_step,
            "lazy": lazy,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": self._decoupled,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state of ours, of geoopt's or of torch's Adam."""
        super().__setstate__(state)
        for group in self.param_groups:
            for p in group["params"]:
                held = self.state.get(p)
                if held:
                    # geoopt's is an int, and torch's may lie on another device than our options ask for.
                    held["step"] = self._step_count(group, p, float(held["step"]))

    def _step_count(self, group: dict[str, Any], p: Tensor, value: float) -> Tensor:
        # torch's fused kernel reads the count on the device; we read it as a number, on the CPU: no wait.
        on_device = group["capturable"] or (group["fused"] and manifold_of(p) is None)
        return torch.tensor(value, dtype=torch.float32, device=p.device if on_device else "cpu")

    def _state_of(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        """The state of a parameter, made at its first step."""
        state: dict[str, Any] = self.state[p]
        manifold = manifold_of(p)
        names = ["exp_avg_sq", "max_exp_avg_sq"] if group["amsgrad"] else ["exp_avg_sq"]
        if not state:
            state["step"] = self._step_count(group, p, 0.0)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if manifold is None:
                for name in names:
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if manifold is not None:
            for name in names:
                # Missing where AMSGrad was switched on later; one number a coordinate where it is geoopt's.
                if name not in state or state[name].numel() == p.numel() > 0:
                    generic.second_moment(state, name, manifold, p.detach())
        return state

    def _step_euclidean(self, group: dict[str, Any], params: list[Tensor]) -> None:
        gradients = [cast(Tensor, p.grad) for p in params]
        if any(gradient.is_sparse for gradient in gradients):
            raise RuntimeError(
                f"{type(self).__name__} takes sparse gradients of manifold parameters only; "
                "torch.optim.SparseAdam takes those of Euclidean ones"
            )
        states = [self._state_of(group, p) for p in params]
        (adamw if group["decoupled_weight_decay"] else adam)(
            params,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            [state["step"] for state in states],
            amsgrad=group["amsgrad"],
            has_complex=any(p.is_complex() for p in params),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=False,
            fused=group["fused"],
        )

    def _step_manifolds(self, group: dict[str, Any], params: list[Tensor]) -> None:
        states = [self._state_of(group, p) for p in params]
        steps = [state["step"] for state in states]
        # A tensor to add, for a number would be made one again for every count.
        one = torch.ones((), device=steps[0].device)
        torch._foreach_add_(steps, one, alpha=1.0)
        counts = (
            {} if group["capturable"] else {p: step.item() for p, step in zip(params, steps, strict=True)}
        )
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * group["amsgrad"]
        together = group["foreach"] is not False
        # Points of a batch share a bias correction, unless counts are tensors: then each row has its own.
        for batch in batches(params, lambda p: (counts.get(p), sparse_id(p)), together):
            count = counts.get(batch[0])
            self._step_batch(group, batch, names, self._per_point(batch) if count is None else count)
        every = group["stabilize"]
        # What did not move needs no projection, which might round it: torch.distributed.checkpoint makes an
        # optimizer's state by a step at lr 0, of parameters that it has already loaded.
        if every is not None and group["lr"] != 0 and any(step % every == 0 for step in steps):
            self.stabilize_group(group)

    def _per_point(self, params: list[Tensor]) -> Tensor:
        """Each point's step count, on the device."""
        manifold = manifold_of_point(params[0])
        steps = torch.stack([self.state[p]["step"] for p in params])
        if len(params) == 1:
            return steps[0]
        # Points of each parameter, in the order in which they are stacked.
        sizes = [p.shape[: p.ndim - manifold.ndim].numel() for p in params]
        return torch.cat([step.expand(size) for step, size in zip(steps, sizes, strict=True)])

    def _advance(
        self,
        group: dict[str, Any],
        manifold: geoopt.Manifold,
        stacks: list[Tensor],
        gradients: Tensor,
        count: Scalar,
        closed_form: bool,
    ) -> None:
        points, momenta, average = stacks[:3]
        largest = stacks[3] if group["amsgrad"] else None
        (beta1, beta2), lr = group["betas"], group["lr"]
        if isinstance(lr, Tensor) and not group["capturable"]:
            lr = lr.item()
        correction1, correction2 = 1 - beta1**count, 1 - beta2**count
        longest = math.inf if group["max_step"] is None else group["max_step"]
        if closed_form:
            # (N, 1) as (N,), by views, for the moments are updated in place.
            flat = [None if each is None else each.reshape(-1) for each in (average, largest)]
            lorentz.adam_rows(
                points,
                gradients.contiguous(),
                momenta,
                lorentz.Moment(cast(Tensor, flat[0]), flat[1], beta2, correction2, group["eps"]),
                curvature.scalar_k(manifold, points),
                beta=beta1,
                step_size=lr / correction1,
                longest=longest,
            )
            return
        if isinstance(count, Tensor) and count.ndim > 0:
            shape = (-1,) + (1,) * (points.ndim - 1)
            # One for each row, against points of any number of axes.
            correction1, correction2 = correction1.view(shape), correction2.view(shape)
        new_points, new_momenta = generic.adam_points(
            manifold,
            points,
            gradients,
            momenta,
            lorentz.Moment(average, largest, beta2, correction2, group["eps"]),
            beta=beta1,
            correction=correction1,
            lr=lr,
            retraction=group["retraction"],
            longest=longest,
        )
        points.copy_(new_points)
        momenta.copy_(new_momenta)


class RiemannianAdamW(RiemannianAdam):
    """:class:`RiemannianAdam` with decoupled weight decay, along geodesics.

    After the step, a point at distance d from the origin is moved on its geodesic to
    (1 - lr·weight_decay)·d, and its momentum is transported along. Euclidean parameters are stepped by
    torch's AdamW.

    Parameters
    ----------
    weight_decay : float
        Default 1e-2, as in torch.
    **options
        As in :class:`RiemannianAdam`.

    Raises
    ------
    ValueError
        When a parameter with weight decay is on a manifold without an origin.
    """

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
