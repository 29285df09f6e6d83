"""What the optimizers share: options, grouping, rows of tables, and the order of a step.

A step first moves all manifold parameters in the space their gradients were taken in, then lets torch step
the Euclidean ones, then, where a curvature was among those, lets the points follow it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, cast, overload

import geoopt
import torch
from torch import Tensor

from riemann_unlearn.optim import curvature, generic, lorentz
from riemann_unlearn.optim.batching import (
    is_lorentz,
    is_uniform,
    manifold_of,
    manifold_of_point,
    scatter,
    stacked,
    views,
)
from riemann_unlearn.optim.lorentz import Scalar


class RiemannianOptimizer(torch.optim.Optimizer):
    """Base of the optimizers; a subclass says what one step of a batch is.

    Parameters
    ----------
    params : iterable of Tensor or of dict
    defaults : dict
        Every option of a group, and its default. Options are checked group by group.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        # By state name and first parameter: the stacked state of a batch, and the views of it that the
        # parameters hold.
        self._stacks: dict[tuple[str, int], tuple[Tensor, list[Tensor]]] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as in torch."""
        super().add_param_group(param_group)
        self._complete(self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state of ours, of geoopt's or of torch's."""
        super().__setstate__(state)
        # Loading has replaced the state's tensors, and unpickling has made no _stacks.
        self._stacks = {}
        for group in self.param_groups:
            self._complete(group)

    def _complete(self, group: dict[str, Any]) -> None:
        """Fill in and check what a new or loaded group leaves open."""
        # A group of geoopt's or torch's has none of the options that only we have.
        for option, value in self.defaults.items():
            group.setdefault(option, value)
        self._check(group)
        flat = [p for p in group["params"] if manifold_of(p) is None]
        if group["fused"] is None:
            group["fused"] = (
                not group["foreach"]
                and not isinstance(group["lr"], Tensor)
                and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in flat)
            )
        if self._decays(group):
            for p in group["params"]:
                manifold = manifold_of(p)
                if manifold is not None and not generic.has_origin(manifold):
                    raise ValueError(
                        f"{manifold} has no origin for decoupled weight decay to lead to; "
                        "put its parameters into a group with weight_decay=0"
                    )

    def _check(self, group: dict[str, Any]) -> None:
        """Refuse options out of range, whether they are the constructor's, a group's own or loaded."""
        name, lr = type(self).__name__, group["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"lr must be one number, got a tensor of shape {tuple(lr.shape)}")
        for option in ("lr", "weight_decay", "eps", "momentum"):
            # Not `< 0`, which lets NaN pass.
            if option in group and not group[option] >= 0:
                raise ValueError(f"{option} must not be negative, got {group[option]}")
        betas = group.get("betas", (0.0, 0.0))
        if not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
        if group["max_step"] is not None and not group["max_step"] > 0:
            raise ValueError(f"max_step must be positive, got {group['max_step']}")
        if group["stabilize"] is not None and not group["stabilize"] >= 1:
            raise ValueError(f"stabilize must be at least 1, got {group['stabilize']}")
        if group.get("nesterov") and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("nesterov needs a momentum and no dampening")
        if group["differentiable"]:
            raise RuntimeError(f"{name} steps in place and cannot be differentiated through")
        if group["foreach"] and group["fused"]:
            raise RuntimeError("foreach and fused cannot both be True")

    def _decays(self, group: dict[str, Any]) -> bool:
        return bool(group.get("decoupled_weight_decay")) and group["weight_decay"] != 0

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the loss anew, with gradients, and returns it.

        Returns
        -------
        float or Tensor, optional
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        flat: list[tuple[dict[str, Any], list[Tensor]]] = []
        for group in self.param_groups:
            euclidean: list[Tensor] = []
            moving: list[Tensor] = []
            for p in group["params"]:
                if p.grad is not None:
                    (euclidean if manifold_of(p) is None else moving).append(p)
            # Of every group, before any Euclidean parameter is stepped: k may be in any of them, and a
            # gradient at a point belongs to the k that it was taken with.
            if moving:
                self._step_manifolds(group, moving)
            flat.append((group, euclidean))
        free = self._free_curvatures(flat)
        for group, euclidean in flat:
            if euclidean:
                self._step_euclidean(group, euclidean)
        _refuse_negative(free)
        self._follow_curvature(flat)
        return loss

    @torch.no_grad()
    def stabilize(self) -> None:
        """Project all manifold parameters, and their momenta on the tangent spaces, as in geoopt."""
        for group in self.param_groups:
            self.stabilize_group(group)

    @torch.no_grad()
    def stabilize_group(self, group: dict[str, Any]) -> None:
        """:meth:`stabilize` for one group."""
        for p in group["params"]:
            manifold = manifold_of(p)
            state = self.state.get(p)
            if manifold is None or not state:
                continue
            # First the point, for the momentum is to be tangent where it is then.
            p.copy_(manifold.projx(p))
            vectors = state.get(self._momentum_name)
            if vectors is not None:
                vectors.copy_(manifold.proju(p, vectors))

    _momentum_name: str

    @abstractmethod
    def _step_euclidean(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Let torch step parameters on no manifold."""

    @abstractmethod
    def _step_manifolds(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Step a group's manifold parameters."""

    @abstractmethod
    def _advance(
        self,
        group: dict[str, Any],
        manifold: geoopt.Manifold,
        stacks: list[Tensor],
        gradients: Tensor,
        count: Scalar,
        closed_form: bool,
    ) -> None:
        """Step the stacks (points, momenta, second moments) in place."""

    def _step_batch(
        self, group: dict[str, Any], params: list[Tensor], names: list[str], count: Scalar
    ) -> None:
        """Stack parameters, gradients and state, step them, and write them back."""
        manifold = manifold_of_point(params[0])
        closed_form = is_lorentz(params[0])
        stack = is_uniform(manifold)
        # One parameter is stepped in its own memory; several are copied together, stepped and copied back.
        points = params if len(params) > 1 else [params[0].detach()]
        gradients = [cast(Tensor, p.grad) for p in params]
        rows: Tensor | None = None
        if gradients[0].is_sparse:
            rows, gradient = _sparse_rows(params[0], gradients[0])
        else:
            gradient = stacked(gradients, manifold.ndim) if stack else gradients[0]
        if not stack and (group["lazy"] or rows is not None):
            raise ValueError(f"{manifold} has parameters of its own for each point: no lazy or sparse steps")
        stacks = [stacked(points, manifold.ndim) if stack else points[0]]
        stacks += [self._stacked_state(params, name, manifold.ndim, stack) for name in names]
        if group["maximize"]:
            # A new tensor, as below: a gradient may be a view of DDP's buckets, and is the caller's to keep.
            # Before the weight decay, which is no part of what is maximized, as in torch.
            gradient = -gradient
        if group["lazy"] and rows is None:
            # Before the weight decay is added, or no row would be zero.
            rows = (gradient.flatten(1) != 0).any(-1).nonzero()[:, 0]
            gradient = gradient[rows]
        if rows is not None and len(rows) == 0:
            return  # not every manifold's maps take no points at all
        # Indexing copies, so what is stepped has to be written back below.
        selected = stacks if rows is None else [each[rows] for each in stacks]
        if group["weight_decay"] != 0 and not self._decays(group):
            gradient = gradient.add(selected[0], alpha=group["weight_decay"])
        self._advance(group, manifold, selected, gradient, count, closed_form)
        if self._decays(group):
            # After the step, at the point that it led to.
            self._decay(group, manifold, selected, closed_form)
        if rows is not None:
            for whole, part in zip(stacks, selected, strict=True):
                whole.index_copy_(0, rows, part)
        # A parameter alone that is not contiguous was copied too.
        if len(points) > 1 or stacks[0].data_ptr() != points[0].data_ptr():
            scatter(stacks[0], points)

    def _stacked_state(self, params: list[Tensor], name: str, point_ndim: int, stack: bool) -> Tensor:
        """The state of a batch as one tensor, of which each parameter's is a view from then on."""
        held: list[Tensor] = [self.state[p][name] for p in params]
        if not stack:
            return held[0]
        # An id may be another parameter's by now, a batch may have grown, a state may have been loaded:
        # the cached stack counts only if its views are the very tensors that the parameters hold.
        key = name, id(params[0])
        whole, parts = self._stacks.get(key, (held[0], []))
        if len(parts) != len(held) or any(a is not b for a, b in zip(parts, held, strict=True)):
            whole = stacked([each.contiguous() for each in held], point_ndim)
            parts = views(whole, held)
            for p, part in zip(params, parts, strict=True):
                self.state[p][name] = part
            self._stacks[key] = whole, parts
        return whole

    def _decay(
        self, group: dict[str, Any], manifold: geoopt.Manifold, stacks: list[Tensor], closed_form: bool
    ) -> None:
        """Shorten the points' distance from the origin by the factor 1 - lr·weight_decay."""
        keep = 1 - group["lr"] * group["weight_decay"]
        if isinstance(keep, Tensor) and keep.device.type == "cpu":
            keep = keep.item()
        # Momenta come first among the names of either optimizer's state.
        vectors = stacks[1] if len(stacks) > 1 else None
        if closed_form:
            lorentz.decay_rows(stacks[0], vectors, curvature.scalar_k(manifold, stacks[0]), keep)
            return
        points, moved = generic.decay_toward_origin(manifold, stacks[0], vectors, keep)
        stacks[0].copy_(points)
        if vectors is not None and moved is not None:
            vectors.copy_(moved)

    def _free_curvatures(
        self, stepped: list[tuple[dict[str, Any], list[Tensor]]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Curvatures of Lorentz points that nothing keeps positive, and their values before the step."""
        # By id, for == of tensors compares their elements. The loop over all parameters is left out where no
        # scalar was stepped.
        scalars = {
            id(p): p
            for group, params in stepped
            if "curvature_clamp" not in group
            for p in params
            if p.numel() == 1
        }
        if not scalars:
            return []
        manifolds = (manifold_of(p) for group in self.param_groups for p in group["params"])
        curvatures = {id(m.k) for m in manifolds if isinstance(m, geoopt.Lorentz)}
        return [(p, p.detach().clone()) for key, p in scalars.items() if key in curvatures]

    def _follow_curvature(self, stepped: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        """Clamp curvatures that were stepped, and let points and momenta follow them."""
        moved: set[int] = set()
        for group, params in stepped:
            if "curvature_clamp" in group:
                for k in params:
                    k.clamp_(*group["curvature_clamp"])
            # Whether or not k changed: on a device that could not be asked without waiting.
            moved.update(id(p) for p in params if p.numel() == 1)
        if not moved:
            return
        # Points that had no gradient follow too: they lie on the same hyperboloid.
        for p in chain.from_iterable(group["params"] for group in self.param_groups):
            manifold = manifold_of(p)
            if isinstance(manifold, geoopt.Lorentz) and id(manifold.k) in moved:
                state = self.state.get(p) or {}
                curvature.follow_(p.detach(), state.get(self._momentum_name), manifold.k)


def _refuse_negative(curvatures: list[tuple[Tensor, Tensor]]) -> None:
    """Take back a step of k that leaves no hyperboloid for the points to lie on, and say so."""
    for k, before in curvatures:
        if not bool((k > 0).all()):
            led_to = k.item()
            # Put back first, so that who catches the error has points that lie on their manifold.
            k.copy_(before)
            raise ValueError(
                f"the step led a manifold's k from {before.item():.4g} to {led_to:.4g}, and k must be "
                "positive (the curvature is -1/k); k was put back. Give k a smaller learning rate, or bounds "
                "by riemann_unlearn.optim.curvature_group(manifold, lr=...)"
            )


def sparse_id(p: Tensor) -> int:
    """Keeps a parameter with a sparse gradient from being batched."""
    return id(p) if p.grad is not None and p.grad.is_sparse else 0


def _sparse_rows(p: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the touched rows of a table, and their gradients."""
    manifold = manifold_of(p)
    if p.ndim != 2 or manifold is None or manifold.ndim != 1 or gradient.sparse_dim() != 1:
        raise RuntimeError(
            "a sparse gradient needs a table of points in its rows, "
            f"got a parameter of shape {tuple(p.shape)}"
        )
    # A row looked up twice is there twice. Rows are written back by index, where the last one would win.
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()
