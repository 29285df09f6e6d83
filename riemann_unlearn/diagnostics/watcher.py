"""The audit of a run in progress: where the points are, and the first number that is not one.

A :class:`Watch` looks at the parameters after a step: now and then at a sample of the points on manifolds,
and ten times as often at whether anything stopped being finite, with one question to the device. It says
in words what it finds, once, and keeps figures for the history of the run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import geoopt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from riemann_unlearn.geometry import dist0, from_poincare
from riemann_unlearn.geometry.precision import wide_length

__all__ = ["StabilityWarning", "Watch", "safe_radius", "watch"]

_SAMPLE = 512
"""Rows of a parameter that are looked at; quantiles of more would not differ by much."""
_QUANTILES = (0.5, 0.99, 1.0)
_RADII = ("radius_50", "radius_99", "radius_max")


class StabilityWarning(UserWarning):
    """Something in the run is past what its numbers can hold."""


def safe_radius(dtype: torch.dtype, tolerance: float = 1e-3) -> float:
    """Radius √c·d up to which rounding a point's coordinates moves it by at most ``tolerance``.

    Rounding moves a point of the Lorentz model by about u·sinh r, u the unit roundoff.

    Examples
    --------
    >>> import torch
    >>> [round(safe_radius(d), 1) for d in (torch.float64, torch.float32, torch.bfloat16)]
    [30.5, 10.4, 0.3]
    """
    # u is half of ε.
    return math.asinh(2 * tolerance / torch.finfo(dtype).eps)


def watch(
    target: torch.nn.Module | Iterable[Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    every: int = 50,
) -> Watch:
    """Watches a model, or its parameters, during training.

    Parameters
    ----------
    target : Module or iterable of Tensor
        Parameters on a geoopt manifold have their radii looked at; all have their values and gradients
        checked for NaN and Inf.
    optimizer : Optimizer, optional
        Its steps are followed by themselves; without it, call :meth:`Watch.step` after each.
    every : int
        Steps between two looks at the radii; NaN and Inf are looked for ten times as often, so at every
        step when this is below 20.

    Returns
    -------
    Watch

    Raises
    ------
    ValueError
        When ``every`` is not positive or there is nothing to watch.

    Examples
    --------
    >>> import geoopt, torch, riemann_unlearn as ru
    >>> manifold = ru.Lorentz()
    >>> points = geoopt.ManifoldParameter(manifold.random_normal(5, 3), manifold=manifold)
    >>> watcher = watch([points], every=1)
    >>> sorted(watcher.step())
    ['0/constraint_error', '0/past_safe', '0/radius_50', '0/radius_99', '0/radius_max']
    """
    if every < 1:
        raise ValueError(f"every must be a positive number of steps, got {every}")
    if isinstance(target, torch.nn.Module):
        named: dict[str, Tensor] = {**dict(target.named_parameters())}
    else:
        named = {str(number): tensor for number, tensor in enumerate(target)}
    if not named:
        raise ValueError("there is no parameter to watch")
    watcher = Watch(named, every)
    if optimizer is not None:
        watcher.follow(optimizer)
    return watcher


class Watch:
    """What :func:`watch` returns.

    Attributes
    ----------
    history : list of dict
        One record a look, with ``step`` and the figures of each parameter by name.
    first_nonfinite : str or None
        Where NaN or Inf was first seen, in words.
    """

    def __init__(self, parameters: dict[str, Tensor], every: int) -> None:
        self.parameters = parameters
        self.every = every
        self.steps = 0
        self.history: list[dict[str, Any]] = []
        self.first_nonfinite: str | None = None
        self._said: set[str] = set()
        self._handle: Any = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> dict[str, float]:
        """Looks at the parameters after an optimizer step.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss again; it is run once, to find the operation, when something is not finite.

        Returns
        -------
        dict
            Figures to add to the run's history, empty between two looks.
        """
        self.steps += 1
        # What stops being finite stays so, and reading everything at every step is what a watch would cost.
        if self.first_nonfinite is None and (self.steps - 1) % max(1, self.every // 10) == 0:
            self._check(closure)
        # The first step is looked at, so that a run that starts out of range is told at once.
        if (self.steps - 1) % self.every:
            return {}
        record = {}
        for name, parameter in self.parameters.items():
            manifold = getattr(parameter, "manifold", None)
            if isinstance(manifold, (geoopt.Lorentz, geoopt.PoincareBall)):
                record.update(self.observe(name, parameter, manifold))
        self.history.append({"step": self.steps, **record})
        return record

    @property
    def due(self) -> bool:
        """Whether the next step is one at which radii are looked at."""
        # The step to come is number steps + 1, and `step` counts from 1.
        return self.steps % self.every == 0

    @torch.no_grad()
    def tangents(self, name: str, vectors: Tensor, c: Tensor) -> dict[str, float]:
        """Quantiles of the radii √c|v| of tangent vectors at the origin, which are safe at any radius."""
        radii = c.detach().double().sqrt() * wide_length(vectors.detach().flatten(0, -2)[:_SAMPLE]).double()
        at = torch.quantile(radii, radii.new_tensor(_QUANTILES))
        return {f"{name}/{key}": value for key, value in zip(_RADII, at.tolist(), strict=True)}

    @torch.no_grad()
    def observe(self, name: str, points: Tensor, manifold: geoopt.Manifold) -> dict[str, float]:
        """The figures of some points, for those that are no parameters, such as a batch of embeddings."""
        rows = points.detach().flatten(0, -2)
        # Spread over the whole: rows of a table are often in order of their frequency or depth.
        rows = rows[:: max(1, len(rows) // _SAMPLE)]
        if isinstance(manifold, geoopt.Lorentz):
            # In float64, so that the error found is that of the points and not of looking.
            c = 1 / manifold.k.detach().double()
            time, space = rows[..., 0].double(), rows[..., 1:].double()
            error = ((time.square() - space.square().sum(-1) - 1 / c) / time.square()).abs()
        else:
            c = manifold.c.detach().double()
            space = from_poincare(rows.double(), c)
            # All of the ball is on the manifold: only what is outside can be off it.
            error = (c.sqrt() * rows.double().norm(dim=-1) - 1).clamp(min=0)
        radii = c.sqrt() * dist0(space, c)
        limit = safe_radius(points.dtype)
        past = (radii > limit).double().mean()
        at = torch.quantile(radii, radii.new_tensor(_QUANTILES))
        # One transfer: each would wait for the device.
        figures = torch.cat([at, error.max()[None], past[None]]).tolist()
        keys = (*_RADII, "constraint_error", "past_safe")
        record = {f"{name}/{key}": value for key, value in zip(keys, figures, strict=True)}
        if record[f"{name}/past_safe"] > 0:
            self._say(
                f"{name}: {100 * figures[4]:.2g} % of the points are past radius {limit:.3g}, where "
                f"{points.dtype} coordinates no longer tell points 1e-3 apart; regularize the norms or keep "
                "tangent vectors"
            )
        # Rounding the coordinates leaves 2 ε at most, ε in x_t² and ε in |x|².
        if figures[3] > 64 * torch.finfo(points.dtype).eps:
            self._say(
                f"{name}: points are off the manifold by {figures[3]:.1e} relative to x_t²; project them "
                "with projx"
            )
        return record

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Looks after every step of the optimizer, until :meth:`close`."""

        def look(*_: Any) -> None:
            self.step()

        self._handle = optimizer.register_step_post_hook(look)

    def close(self) -> None:
        """Lets go of the optimizer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _check(self, closure: Callable[[], Tensor] | None) -> None:
        seen = {f"the value of {name}": p.detach() for name, p in self.parameters.items()}
        seen |= {f"the gradient of {n}": p.grad for n, p in self.parameters.items() if p.grad is not None}
        # A sum is finite when its terms are, up to overflow, which the second look tells apart.
        # Brought together on a device, so that the host asks, and waits, once.
        parts = [t.sum().double() for t in seen.values()]
        sums = torch.stack([part.to(parts[0].device) for part in parts])
        if bool(sums.isfinite().all()):
            return
        bad = [where for where, tensor in seen.items() if not bool(tensor.isfinite().all())]
        if not bad:
            return
        self.first_nonfinite = f"{bad[0]}, by step {self.steps}"
        origin = locate(closure) if closure is not None else None
        if origin is not None:
            self.first_nonfinite += f", from {origin}"
        self._say(f"NaN or Inf in {self.first_nonfinite}")

    def _say(self, message: str) -> None:
        # Figures differ from look to look. The parameter's name and the end of the sentence tell
        # what was said.
        subject = message.partition(":")[0] + message[-20:]
        if subject not in self._said:
            self._said.add(subject)
            warnings.warn(message, StabilityWarning, stacklevel=3)


def locate(closure: Callable[[], Tensor]) -> str | None:
    """The first operation of ``closure``, forward or backward, with a result that is not finite."""
    with torch.enable_grad(), _FirstNonFinite() as mode:
        loss = closure()
    operation: str | None = mode.operation
    if operation is not None:
        return operation
    if not loss.requires_grad:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.enable_grad(), torch.autograd.detect_anomaly():
            try:
                torch.autograd.grad(closure(), [t for t in _leaves(loss)], allow_unused=True)
            except RuntimeError as error:
                # Anomaly mode says "Function 'SqrtBackward0' returned nan values in its 0th output."
                return str(error).split("'")[1] if "'" in str(error) else str(error)
    return None


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that a loss has gradients for."""
    leaves, stack, seen = [], [loss.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack += [following for following, _ in node.next_functions]
    return leaves


class _FirstNonFinite(TorchFunctionMode):
    """Remembers the first function whose result has NaN or Inf while its arguments had none."""

    operation: str | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # The mode is off in here, so what is called below does not come back to it.
        result = func(*args, **(kwargs or {}))
        if self.operation is None and isinstance(result, Tensor) and result.is_floating_point():
            clean = all(bool(a.isfinite().all()) for a in args if isinstance(a, Tensor))
            if clean and not bool(result.isfinite().all()):
                self.operation = getattr(func, "__name__", str(func))
        return result
