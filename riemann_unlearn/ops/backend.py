"""Which implementation serves a device, and how numbers reach it: one decision for all ops."""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature, sqrt_c


def backend(device: torch.device | str = "cpu") -> str:
    """What the ops run on ``device``.

    Returns
    -------
    str
        "numba": tiles that stay in the caches, with compiled passes between their matrix products. "tiled":
        the same with torch operations, where numba cannot be imported. "triton": the vendor's products and
        Triton kernels between them. "reference": plain torch, with the whole matrix.

    Examples
    --------
    >>> backend("cpu")
    'numba'
    """
    kind = torch.device(device).type
    if kind == "cuda" and importlib.util.find_spec("triton") is not None:
        return "triton"
    if kind == "cpu":
        return "numba" if has_numba() else "tiled"
    return "reference"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_numba() -> bool:
    """Whether numba can be imported; asked when an op first runs, for importing it takes a while."""
    return _imports("numba")


@functools.cache
def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def as_scalar(value: Curvature, like: Tensor, *, curvature: bool = False) -> Tensor:
    """A number, or a tensor of one element, as a tensor without dimensions on the device of ``like``.

    Raises
    ------
    ValueError
        For a number that should be a curvature magnitude and is not positive.
    """
    if isinstance(value, Tensor):
        return value.to(like.device).reshape(())
    if curvature:
        sqrt_c(value, like)
    return torch.tensor(value, dtype=torch.float64, device=like.device)
