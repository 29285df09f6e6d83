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

from riemann_unlearn.geometry.tiles import tiled

Curvature = float | Tensor
"""Magnitude c > 0 of a curvature -c; a tensor takes gradients and broadcasts against the batch."""


_PATHS = 16
"""As many gradients of the largest size may meet at a tensor without overflow."""


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


def working_dtype(v: Tensor) -> torch.dtype:
    """The dtype the elementwise functions compute in on the device of ``v``."""
    # For its TypeError alone: the dtype computed in does not depend on that of v.
    result_dtype(v)
    return torch.float32 if v.device.type == "mps" else torch.float64


def working(v: Tensor) -> Tensor:
    """``v`` in the dtype the elementwise functions compute in.

    A gradient too large for the dtype of ``v`` comes back as a sixteenth of its largest number.
    """
    dtype = working_dtype(v)
    return v if v.dtype == dtype else cast(Tensor, apply(_Widen, v, dtype))


def length(v: Tensor) -> Tensor:
    """|v| along the last axis, in the dtype of ``v``; see :func:`wide_length`."""
    return wide_length(v).to(v.dtype)


def wide_length(v: Tensor) -> Tensor:
    """|v| along the last axis, in the working dtype; no square over- or underflows, |0| has gradient 0.

    NaN for a row with a number that is not finite.
    """
    unit = row_unit(v)
    if unit is None:
        return span(v)
    # Over its unit no row over- or underflows when it is squared. The length of a row of the largest numbers
    # may still not fit: it is held. A row with an infinite number is NaN already, which clamp lets through.
    inverse = (1 / unit)[..., None]
    size = scaled(span(scaled(v, inverse)), unit)
    return size.clamp(max=torch.finfo(size.dtype).max)


def span(v: Tensor) -> Tensor:
    """:func:`wide_length` of rows whose squares are known to be in range."""
    size: Tensor = apply(_Length, v)
    return size


def largest(v: Tensor) -> Tensor:
    """The largest absolute component, shape (..., 1), without gradient."""
    # amax refuses an axis without elements.
    if v.shape[-1] == 0:
        return v.new_zeros(*v.shape[:-1], 1)
    return v.detach().abs().amax(-1, keepdim=True)


def power_of_two(m: Tensor) -> Tensor:
    """The power of two in (m/2, m], by which dividing is exact; 1 for 0."""
    positive = m > 0
    # m = mantissa·2^e with the mantissa in [1/2, 1): the quotient below is 2^(e-1), without rounding.
    mantissa, _ = torch.frexp(m)
    return torch.where(positive, m / torch.where(positive, 2 * mantissa, 1.0), 1.0)


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
        c = c.to(like.device)
        return (c if c.dtype == like.dtype else cast(Tensor, apply(_Widen, c, like.dtype))).sqrt()
    # A bool is an int to Python, but no curvature.
    if not isinstance(c, (int, float)) or isinstance(c, bool):
        raise TypeError(f"the curvature magnitude c must be a number or a Tensor, got {c!r}")
    if not 0 < c < math.inf:
        raise ValueError(f"the curvature magnitude c must be positive, got {c}")
    return torch.tensor(math.sqrt(c), dtype=like.dtype, device=like.device)


def working_root(c: Curvature, v: Tensor) -> Tensor:
    """√c as :func:`sqrt_c` gives it, in the dtype in which functions of ``v`` are computed."""
    return sqrt_c(c, v.new_empty(0, dtype=working_dtype(v)))


def row_unit(*vectors: Tensor) -> Tensor | None:
    """The power of two near the largest number of each row, shape (...).

    None where it is not needed: in the working dtype, numbers of a narrower one can be multiplied. It has
    an inverse, so that subnormal numbers are not lifted all the way.
    """
    data, wide = result_dtype(*vectors), working_dtype(vectors[0])
    # The square of the largest float32 number is 1e77, of 1e308 that float64 holds.
    if torch.finfo(data).max < math.sqrt(torch.finfo(wide).max):
        return None
    size = largest(vectors[0].to(wide))
    for other in vectors[1:]:
        size = torch.maximum(size, largest(other.to(wide)))
    # 2^1000 for float64: within 2^±1000 a power of two and its inverse are both normal numbers.
    end = 2.0 ** math.floor(math.log2(torch.finfo(wide).max) - 24)
    return power_of_two(size[..., 0]).clamp(1 / end, end)


def range_root(dtype: torch.dtype, degree: int) -> float:
    """A power of two, the ``degree``-th power of which is finite and has an inverse."""
    # By the exponent itself: log2 of float64's largest number rounds up to that of infinity.
    return 2.0 ** ((math.frexp(torch.finfo(dtype).max)[1] - 1) // degree)


def in_range(v: Tensor, data: torch.dtype) -> tuple[Tensor, Tensor | float]:
    """``v``, numbers of dtype ``data``, in the working dtype; over a power of two where a square needs it."""
    wide = v.to(working_dtype(v))
    # As in row_unit: the narrow dtypes have room to be squared, and spare the pass that finds a scale.
    if torch.finfo(data).max < math.sqrt(torch.finfo(wide.dtype).max):
        return wide, 1.0
    scale = power_of_two(largest(wide))
    return wide / scale, scale[..., 0]


def scaled(v: Tensor, factor: Tensor, slope: Tensor | None = None) -> Tensor:
    """``v * factor``, with the gradient multiplied by ``slope``, or the factor, and kept finite.

    What a second derivative brings is kept below the cube root of the largest number, for it has two more
    factors to meet.
    """
    product: Tensor = apply(_Scaled, v, factor, slope, torch.finfo(v.dtype).max / _PATHS)
    return product


def unit_vector(v: Tensor, n: Tensor) -> Tensor:
    """v/|v| in the dtype of its length ``n``, and 0 for 0."""
    return working(v) / torch.where(n == 0, 1.0, n)[..., None]


def ratio_or_zero(part: Tensor, n: Tensor) -> Tensor:
    """part/n, and 0 where n is 0; what is NaN stays so."""
    # Both branches of a where are differentiated: a quotient by 0 in the one not taken would make the
    # gradient NaN.
    none = n == 0
    return torch.where(none, 0.0, part / torch.where(none, 1.0, n))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product along the last axis."""
    return (a * b).sum(-1)


def finite(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value``, no larger than that ``dtype`` holds a sum of sixteen."""
    most = min(torch.finfo(dtype).max, torch.finfo(value.dtype).max) / _PATHS
    return value.clamp(-most, most)


def within(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` in ``dtype``; numbers that do not fit are taken to its end."""
    most = torch.finfo(dtype).max
    return value.clamp(-most, most).to(dtype)


def apply(function: Any, *arguments: Any) -> Any:
    """``function.apply``, with its rule for forward mode where that can be used.

    Dynamo does not trace a function that has such a rule, so it stands in the subclass ``function.Forward``.
    """
    return (function if torch.compiler.is_compiling() else function.Forward).apply(*arguments)


def _length(v: Tensor) -> tuple[Tensor]:
    n = torch.linalg.vector_norm(v.to(working_dtype(v)), dim=-1)
    # Where squares are in range only an infinite coordinate has an infinite length, and that is in no space.
    return (torch.where(n.isinf(), torch.nan, n),)


class _Length(torch.autograd.Function):
    generate_vmap_rule = True
    Forward: type[torch.autograd.Function]

    @staticmethod
    def forward(v: Tensor) -> Tensor:
        return tiled(_length, v)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        v, n = ctx.saved_tensors

        def grad_v(v: Tensor, n: Tensor, gradient: Tensor) -> tuple[Tensor]:
            # Bounded before it is narrowed: a float64 gradient too large for float32 would become infinite.
            return ((finite(gradient, v.dtype)[..., None] * unit_vector(v, n)).to(v.dtype),)

        return tiled(grad_v, v, n, gradient)[0]


class _LengthForward(_Length):
    @staticmethod
    def jvp(ctx: Any, moved: Tensor) -> Tensor:
        v, n = ctx.saved_tensors
        return dot(unit_vector(v, n), moved)


class _Widen(torch.autograd.Function):
    """A conversion to a wider dtype, whose gradient is clamped to what the narrower one can add up."""

    generate_vmap_rule = True
    Forward: type[torch.autograd.Function]

    @staticmethod
    def forward(v: Tensor, dtype: torch.dtype) -> Tensor:
        return v.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype], output: Tensor) -> None:
        ctx.narrow, ctx.wide = inputs[0].dtype, inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Autograd's own conversion would take what does not fit to infinity.
        most = torch.finfo(ctx.narrow).max / _PATHS
        return gradient.clamp(-most, most).to(ctx.narrow), None


class _WidenForward(_Widen):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.to(ctx.wide)


class _Scaled(torch.autograd.Function):
    generate_vmap_rule = True
    Forward: type[torch.autograd.Function]

    @staticmethod
    def forward(v: Tensor, factor: Tensor, slope: Tensor | None, most: float) -> Tensor:
        return v * factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, float], output: Tensor) -> None:
        _, factor, slope, ctx.most = inputs
        ctx.save_for_backward(factor if slope is None else slope)
        ctx.save_for_forward(factor if slope is None else slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        # By the same function again, so that the derivative of this gradient is kept finite too.
        grad_v = apply(_Scaled, gradient, slope, None, min(ctx.most, range_root(gradient.dtype, 3)))
        return grad_v.clamp(-ctx.most, ctx.most), None, None, None


class _ScaledForward(_Scaled):
    @staticmethod
    def jvp(ctx: Any, moved: Tensor, *_: None) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        return moved * slope


_Length.Forward, _Widen.Forward, _Scaled.Forward = _LengthForward, _WidenForward, _ScaledForward
