"""In which precision the geometry is computed, and what it accepts as a curvature.

float16, bfloat16 and float32 inputs are computed in float64 and give float32; float64 gives float64. The
elementwise functions cost a few passes over their inputs, so the wider arithmetic costs little beside the
matrix product of a loss, and it makes their float32 results right to about one unit in the last place.
Devices without float64 (MPS) compute in float32.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

Curvature = float | Tensor
"""Magnitude c > 0 of a curvature -c; a tensor takes gradients and broadcasts against the batch."""


def widen(v: Tensor) -> Tensor:
    """At least float32: half precision has no digits to spare for geometry.

    Raises
    ------
    TypeError
        When ``v`` is not floating point.

    Examples
    --------
    >>> import torch
    >>> widen(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return v.to(result_dtype(v))


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of a result: the widest of the arguments and float32."""
    dtype = torch.float32
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise TypeError(f"expected floating-point vectors, got {tensor.dtype}; convert with .float()")
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def working(v: Tensor) -> Tensor:
    """``v`` in the dtype the elementwise functions compute in.

    A gradient too large for the dtype of ``v`` comes back as the largest finite number.
    """
    dtype = torch.float32 if v.device.type == "mps" else torch.float64
    return v if v.dtype == dtype else cast(Tensor, _Widen.apply(v, dtype))


def length(v: Tensor) -> Tensor:
    """|v| along the last axis, in the dtype of ``v``, where no square over- or underflows."""
    scale = power_of_two(largest(v))
    return scale[..., 0] * norm(v / scale)


def norm(v: Tensor) -> Tensor:
    """|v| along the last axis; at 0 the gradient and what is derived from it are 0."""
    zero = (v == 0).all(-1)
    size: Tensor = torch.linalg.vector_norm(torch.where(zero[..., None], 1.0, v), dim=-1)
    return torch.where(zero, 0.0, size)


def largest(v: Tensor) -> Tensor:
    """The largest absolute component, shape (..., 1), without gradient."""
    return v.detach().abs().amax(-1, keepdim=True)


def power_of_two(m: Tensor) -> Tensor:
    """The power of two in [m, 2m), by which dividing is exact; 1 for 0."""
    positive = m > 0
    mantissa, _ = torch.frexp(m)
    return torch.where(positive, m / torch.where(positive, mantissa, 1.0), 1.0)


def sqrt_c(c: Curvature, like: Tensor) -> Tensor:
    """√c as a tensor of ``like``'s dtype and device.

    Raises
    ------
    ValueError
        For a number that is not positive and finite; a tensor's values are not looked at.
    TypeError
        When ``c`` is neither a number nor a tensor.
    """
    if isinstance(c, Tensor):
        return c.to(like).sqrt()
    if not isinstance(c, (int, float)) or isinstance(c, bool):
        raise TypeError(f"the curvature magnitude c must be a number or a Tensor, got {c!r}")
    if not 0 < c < math.inf:
        raise ValueError(f"the curvature magnitude c must be positive, got {c}")
    return torch.tensor(math.sqrt(c), dtype=like.dtype, device=like.device)


class _Widen(torch.autograd.Function):
    """A conversion to a wider dtype, whose gradient is clamped to what the narrower one can hold."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, dtype: torch.dtype) -> Tensor:
        return v.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype], output: Tensor) -> None:
        ctx.narrow, ctx.wide = inputs[0].dtype, inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        most = torch.finfo(ctx.narrow).max
        return gradient.clamp(-most, most).to(ctx.narrow), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.to(ctx.wide)
