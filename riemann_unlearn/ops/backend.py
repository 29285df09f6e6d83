"""Which implementation serves a device, and how numbers reach it: one decision for all ops."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature, sqrt_c


def backend(device: torch.device | str = "cpu") -> str:
    """What the ops run on ``device``.

    Returns
    -------
    str
        "tiled": torch operations on tiles that stay in the caches; nothing is compiled. "triton": the
        vendor's products and Triton kernels between them. "reference": plain torch, with the whole matrix.

    Examples
    --------
    >>> backend("cpu")
    'tiled'
    """
    kind = torch.device(device).type
    if kind == "cuda" and importlib.util.find_spec("triton") is not None:
        return "triton"
    return "tiled" if kind == "cpu" else "reference"


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
