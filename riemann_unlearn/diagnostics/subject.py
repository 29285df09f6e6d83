"""What an audit is made of: any library's operations, seen as functions of coordinates.

A :class:`Subject` has, for each operation of :mod:`~riemann_unlearn.diagnostics.reference` that the library
offers, a function of float64 tensors of coordinates in its chart. It hands the library what that stores
(ambient points for geoopt's ``Lorentz``) in the dtype of the audit, and is differentiable, so that gradients
come out with respect to the coordinates, along the manifold.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import geoopt
import torch
from torch import Tensor

from riemann_unlearn.diagnostics.reference import CHARTS, OPERATIONS, Chart, Operation

CHART_NAMES = ("ambient", "space", "ball", "tangent")
"""How points are stored: with their time component, without it, in the Poincaré ball, or as logarithms."""

_ALIASES = {
    "dist": ("distance",),
    "expmap0": ("exp_map0",),
    "logmap0": ("log_map0",),
    "transp": ("parallel_transport",),
    "exterior_angle": ("oxy_angle",),
}


@dataclass(frozen=True)
class Subject:
    """A library under audit."""

    name: str
    chart: Chart
    c: float
    functions: dict[str, Callable[..., Tensor]]


def as_subject(
    manifold: Any, *, name: str | None, chart: str | None, c: float, dtype: torch.dtype, device: str
) -> Subject:
    """The subject for a manifold object or a module of functions.

    Raises
    ------
    ValueError
        When it is not known how the manifold stores its points, it has none of the operations, or its
        curvature is not that of a hyperbolic space.
    """
    chart = chart or _chart_of(manifold) or getattr(manifold, "chart", None)
    if chart not in CHART_NAMES:
        raise ValueError(
            f"it is not known how {_name(manifold)} stores its points; say chart=, one of {CHART_NAMES}"
        )
    if isinstance(manifold, torch.nn.Module):
        manifold = manifold.to(device=device, dtype=dtype)
    shared: tuple[Any, ...] = ()
    if isinstance(manifold, ModuleType):
        shared = (torch.tensor(c, dtype=dtype, device=device),)
        c = float(shared[0])  # as the dtype has it
    elif isinstance(manifold, geoopt.Lorentz):
        c = 1 / float(manifold.k)
    elif hasattr(manifold, "c"):
        c = float(manifold.c() if callable(manifold.c) else manifold.c)
    if not 0 < c < math.inf:  # the exact results divide by it; also what the dtype has rounded to 0
        raise ValueError(f"c, the curvature magnitude, must be positive and finite; in {dtype} it is {c}")
    # Only now, since moving a manifold to a dtype rounds the curvature that the exact results are made with.
    functions = {}
    for operation in OPERATIONS.values():
        function = _function(manifold, operation.name)
        if function is not None:
            functions[operation.name] = _on_coordinates(function, operation, chart, c, shared, dtype, device)
    if not functions:
        raise ValueError(f"{_name(manifold)} has none of the operations {tuple(OPERATIONS)}")
    stored = CHARTS["space" if chart == "ambient" else chart]
    return Subject(name or _name(manifold), stored, c, functions)


def find(target: str) -> Any:
    """The object that ``module:attribute``, ``module`` or ``path/to/file.py[:attribute]`` names.

    A class is called without arguments, to give the manifold.

    Raises
    ------
    ValueError
        When there is no such thing.
    """
    home, _, attribute = target.partition(":")
    try:
        if home.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(home).stem, home)
            if spec is None or spec.loader is None:
                raise ImportError(f"{home} is no Python file")
            target_object: Any = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(target_object)
        else:
            target_object = importlib.import_module(home)
        if attribute:
            target_object = getattr(target_object, attribute)
        # A class whose constructor wants arguments raises TypeError, which is reported as the rest is.
        return target_object() if isinstance(target_object, type) else target_object
    except (ImportError, AttributeError, OSError, TypeError) as error:
        raise ValueError(f"cannot load the manifold {target!r} (module:attribute): {error}") from None


def _chart_of(manifold: Any) -> str | None:
    if isinstance(manifold, geoopt.Lorentz):
        return "ambient"
    if isinstance(manifold, geoopt.PoincareBall):
        return "ball"
    return {"riemann_unlearn.geometry": "space", "riemann_unlearn.geometry.tangent": "tangent"}.get(
        getattr(manifold, "__name__", "")
    )


def _name(manifold: Any) -> str:
    if isinstance(manifold, ModuleType):
        return manifold.__name__
    return f"{type(manifold).__module__.split('.')[0]}.{type(manifold).__name__}"


def _function(manifold: Any, name: str) -> Callable[..., Tensor] | None:
    for alias in (name, *_ALIASES.get(name, ())):
        method: Callable[..., Tensor] | None = getattr(manifold, alias, None)
        if callable(method):
            return method
    pairwise = getattr(manifold, "pairwise_dist", None)
    if name == "dist" and pairwise is not None:
        # A matrix of one row by one column, for libraries that have no elementwise distance.
        return lambda x, y, *rest: pairwise(x[None], y[None], *rest)[0, 0]
    return None


def _on_coordinates(
    function: Callable[..., Tensor],
    operation: Operation,
    chart: str,
    c: float,
    shared: tuple[Any, ...],
    dtype: torch.dtype,
    device: str,
) -> Callable[..., Tensor]:
    def run(*coordinates: Tensor) -> Tensor:
        stored = []
        for value, kind in zip(coordinates, operation.arguments, strict=True):
            if chart == "ambient":
                # In float64 and differentiably: gradients by space components include what moves the time
                # component, and are those along the manifold. A vector at the first point has x·u/x_t, one at
                # the origin 0.
                time = torch.sqrt(1 / c + coordinates[0].square().sum())
                if kind == "point":
                    time = torch.sqrt(1 / c + value.square().sum())
                elif kind == "vector":
                    time = (coordinates[0] * value).sum() / time
                else:
                    time = 0 * time
                value = torch.cat([time[None], value])
            stored.append(value.to(device=device, dtype=dtype))
        result = function(*stored, *shared)
        if operation.result != "number" and chart == "ambient":
            # A time component follows from the others, and would be counted twice.
            result = result[..., 1:]
        return result.to(device="cpu", dtype=torch.float64)

    return run
