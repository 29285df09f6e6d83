r"""The two operations that touch whole vectors, each with its gradient written by hand.

Everything in this package comes down to them and to functions of a few numbers for each row:

- :func:`corner` takes two vectors to their lengths, the difference of the lengths and the angle between
  them, without cancellation;
- :func:`radial` moves a vector along its ray, :math:`v \mapsto \hat v\, f(\sqrt c\,|v|)/\sqrt c`. The
  exponential map and the logarithm at the origin and the passages between models of hyperbolic space are all
  of that form.

Both compute in float64 whatever they are given (see :mod:`~riemann_unlearn.geometry.precision`), take a row
in a few passes, and give gradients that are finite where the mathematical one is not defined. Their backward
passes are differentiable again, and can be mapped and compiled.

**Angle.** With :math:`s = x\cdot y/|x|^2`, the part of y across x is :math:`ρ = y - s\,x`. It is taken in two
steps, the first with the leading bits of s, so that no product is rounded: for nearly parallel vectors the
subtractions are then exact, and ρ is right to rounding. The second step removes what is left along x. Lengths
follow by Pythagoras, and so does their difference, from s - 1 and |ρ|², whose terms are not larger than the
distance between x and y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from riemann_unlearn.geometry.frame import frame
from riemann_unlearn.geometry.precision import (
    Curvature,
    apply,
    dot,
    finite,
    in_range,
    ratio_or_zero,
    result_dtype,
    unit_vector,
    wide_length,
    working,
)
from riemann_unlearn.geometry.tiles import tiled


class Corner(NamedTuple):
    """Two vectors as the origin sees them; each number in the form that keeps its digits."""

    n1: Tensor
    """|x|"""
    n2: Tensor
    """|y|"""
    gap: Tensor
    """|x| - |y|"""
    sine: Tensor
    """sin θ; 0 where a vector is zero."""
    half_sine: Tensor
    """sin(θ/2); 0 where a vector is zero."""


def corner(x: Tensor, y: Tensor, data: torch.dtype) -> Corner:
    """Lengths of two vectors and the angle between them, in the working dtype.

    A vector that is zero has no direction; its gradient is that of moving it along the other one. At θ = 0
    and θ = π, where the angle has a kink, its gradient is 0.

    Parameters
    ----------
    x, y : Tensor, shape (..., D)
        The leading shapes broadcast.
    data : dtype
        That of the numbers in x and y, which may be held in a wider one; narrow numbers are cheaper.
    """
    x, y = torch.broadcast_tensors(x, y)  # type: ignore[no-untyped-call]
    return Corner(*apply(_Corner, x, y, data)[:5])


class Profile(NamedTuple):
    """The function f of a radial map, by what is needed of it; all of it takes m = √c|v|."""

    ratio: Callable[[Tensor], Tensor]
    """f(m)/m, the derivative across the ray."""
    excess: Callable[[Tensor], Tensor]
    """m·f'(m) - f(m): over m what the derivative along the ray has more, and what the curvature moves."""


def radial(v: Tensor, c: Curvature, profile: Profile) -> Tensor:
    """The vectors v̂·f(√c|v|)/√c, at least float32; v itself where v is zero.

    Parameters
    ----------
    v : Tensor, shape (..., D)
    c : float or Tensor
        Curvature magnitude, a scalar or of the batch's shape.
    """
    dtype = result_dtype(v)
    framed = frame(c, v)
    (v,), root = framed.vectors, framed.root
    most = torch.finfo(root.dtype).max
    # 2^13 is more than 2e^8: a float64 point in units of 1 is held before sinh m = max/(2e^8), from where on
    # sinhc is constant and no longer right.
    end = root.new_tensor(min(torch.finfo(dtype).max / 4, most / 2**13))
    if framed.unit is not None:
        end = (end / framed.unit).clamp(max=most)
    shape = torch.broadcast_shapes(v.shape[:-1], root.shape)  # type: ignore[no-untyped-call]
    # Tiles are cut along the first axis, so every argument has to have it.
    rows = v.expand(*shape, v.shape[-1]), root.expand(shape), end.expand(shape)
    moved: Tensor = apply(_Radial, *rows, profile, dtype)[0]
    return framed.vector_back(moved)


class _Radial(torch.autograd.Function):
    generate_vmap_rule = True
    Forward: type[torch.autograd.Function]

    @staticmethod
    def forward(
        v: Tensor, root: Tensor, end: Tensor, profile: Profile, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        def moved(v: Tensor, root: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
            n = wide_length(v)
            ratio, _, _ = _profiled(profile, n, root, end)
            return (v.to(n.dtype) * ratio[..., None]).to(dtype), n

        moved_v, n = tiled(moved, v, root, end)
        return moved_v, n

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        v, root, end, ctx.profile, ctx.dtype = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(v, root, end, output[1])
        ctx.save_for_forward(v, root, end, output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        v, root, end, n = ctx.saved_tensors
        if torch.is_grad_enabled():  # differentiable again
            n = wide_length(v)

        def pulled(
            gradient: Tensor, v: Tensor, root: Tensor, end: Tensor, n: Tensor
        ) -> tuple[Tensor, Tensor]:
            ratio, turn, root_slope = _profiled(ctx.profile, n, root, end)
            # Across the ray the derivative is f(m)/m, along it f'(m): the Jacobian is ratio + turn·v̂v̂ᵀ. It
            # is symmetric, so that pushing a vector and pulling a gradient are the same product.
            unit, wide = unit_vector(v, n), gradient.to(n.dtype)
            along = dot(unit, wide)
            grad_v = torch.addcmul(ratio[..., None] * wide, (turn * along)[..., None], unit)
            most = torch.finfo(v.dtype).max
            return grad_v.clamp(-most, most).to(v.dtype), finite(along * root_slope, root.dtype)

        grad_v, grad_root = tiled(pulled, gradient, v, root, end, n)
        return grad_v, grad_root, None, None, None


class _RadialForward(_Radial):
    @staticmethod
    def jvp(ctx: Any, moved: Tensor | None, moved_root: Tensor | None, *_: None) -> tuple[Tensor, None]:
        v, root, end, n = ctx.saved_tensors
        ratio, turn, root_slope = _profiled(ctx.profile, n, root, end)
        unit = unit_vector(v, n)
        pushed = torch.zeros_like(unit)
        if moved is not None:
            wide = moved.to(n.dtype)
            pushed = ratio[..., None] * wide + (turn * dot(unit, wide))[..., None] * unit
        if moved_root is not None:
            pushed = pushed + (moved_root * root_slope)[..., None] * unit
        return pushed.to(ctx.dtype), None


def _profiled(profile: Profile, n: Tensor, root: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f(m)/m, f'(m) - f(m)/m and the derivative of f(m)/√c by √c; constant for |v|·f(m)/m past ``end``."""
    m = (root * n).clamp(max=torch.finfo(n.dtype).max)
    ratio = profile.ratio(m)
    # A ratio below 1 shortens a vector, which then fits: with n cut off at the end it is never held.
    held = ratio * torch.minimum(n, end) >= end
    ratio = torch.where(held, end / torch.where(held, n, 1.0), ratio)
    # At a constant length a point can only turn, with the Jacobian ratio·(1 - v̂v̂ᵀ). The excess there may
    # overflow, and is asked for at 0 instead.
    excess = profile.excess(torch.where(held, 0.0, m))
    turn = excess / torch.where(m > 0, m, 1.0)
    # The powers of the root are taken one by one, for small curvatures.
    return ratio, torch.where(held, -ratio, turn), torch.where(held, 0.0, excess / root / root)


class _Corner(torch.autograd.Function):
    generate_vmap_rule = True
    Forward: type[torch.autograd.Function]

    @staticmethod
    def forward(x: Tensor, y: Tensor, data: torch.dtype) -> tuple[Tensor, ...]:
        return tiled(lambda x, y: _corner(x, y, data), x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        *vectors, ctx.data = inputs
        ctx.mark_non_differentiable(*output[5:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*vectors, *output)
        ctx.save_for_forward(*vectors, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, Tensor, None]:
        x, y, n1, n2, _, sine, half, head, size = ctx.saved_tensors
        grad_n1, grad_n2, grad_gap, grad_sine, grad_half = (
            torch.zeros_like(n1) if gradient is None else gradient for gradient in gradients[:5]
        )
        d = _derivatives(n1, n2, sine, half)
        # Everything is a function of |x|, |y| and θ. The angle falls by 1/|x| for a step of x across itself
        # towards y, and grows by 1/|y| for one of y away from x. If x is zero, the unit vector across it is
        # ŷ, and a step along that counts as one of its length.
        grad_angle = grad_sine * d.cosine + grad_half * d.half_slope
        along1, along2 = grad_n1 + grad_gap, grad_n2 - grad_gap
        turn1 = torch.where(d.zero1, along1, -grad_angle * d.over1)
        turn2 = grad_angle * d.over2
        # In the basis of x̂ and the normal to it, ŷ is (cos, sin) and the normal to ŷ is (sin, -cos).
        grad_x = finite(along1, x.dtype), finite(turn1, x.dtype)
        grad_y = (
            finite(along2 * d.cosine - turn2 * sine, y.dtype),
            finite(along2 * d.sine + turn2 * d.cosine, y.dtype),
        )
        if torch.is_grad_enabled():  # differentiable again
            unit = unit_vector(x, n1)
            # The saved numbers are made of exact steps, through which no derivative should be taken: the
            # value of the normal is theirs, its derivative that of the plain formula.
            normal = _normal(x, y, n1, head, size, ctx.data).detach()
            normal = _differentiable_normal(x, y, n1, n2, sine, normal)
            pulled = [
                along[..., None] * unit + across[..., None] * normal for along, across in (grad_x, grad_y)
            ]
            return pulled[0].to(x.dtype), pulled[1].to(y.dtype), None

        def combined(
            x: Tensor, y: Tensor, n1: Tensor, head: Tensor, size: Tensor, *parts: Tensor
        ) -> tuple[Tensor, Tensor]:
            wide, across = _wide_and_across(x, y, n1, head, ctx.data)
            # The numbers of a row are divided, not its vectors: that spares a pass over each. The part across
            # and its size are both in the scale of y, which cancels.
            along1, turn1, along2, turn2 = (
                ratio_or_zero(part, n)[..., None] for part, n in zip(parts, (n1, size, n1, size), strict=True)
            )
            grad_x = torch.addcmul(turn1 * across, along1, wide)
            grad_y = torch.addcmul(turn2 * across, along2, wide)
            return grad_x.to(x.dtype), grad_y.to(y.dtype)

        pulled_x, pulled_y = tiled(combined, x, y, n1, head, size, *grad_x, *grad_y)
        return pulled_x, pulled_y, None


class _CornerForward(_Corner):
    @staticmethod
    def jvp(ctx: Any, moved_x: Tensor | None, moved_y: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        x, y, n1, n2, _, sine, half, head, size = ctx.saved_tensors
        d, unit = _derivatives(n1, n2, sine, half), unit_vector(x, n1)
        normal = _normal(x, y, n1, head, size, ctx.data)
        none = torch.zeros_like(n1)
        along1 = across1 = along2 = across2 = none
        if moved_x is not None:
            along1, across1 = dot(unit, moved_x), dot(normal, moved_x)
        if moved_y is not None:
            parts = dot(unit, moved_y), dot(normal, moved_y)
            along2 = d.cosine * parts[0] + d.sine * parts[1]
            across2 = sine * parts[0] - d.cosine * parts[1]
        along1 = along1 + torch.where(d.zero1, across1, 0.0)
        angle = -across1 * d.over1 - across2 * d.over2
        return along1, along2, along1 - along2, d.cosine * angle, d.half_slope * angle, None, None


_Radial.Forward, _Corner.Forward = _RadialForward, _CornerForward


class _Derivatives(NamedTuple):
    """What the derivatives of a corner are made of; a zero vector is taken to lie along the other one."""

    zero1: Tensor
    cosine: Tensor
    sine: Tensor
    half_slope: Tensor
    """d sin(θ/2)/dθ"""
    over1: Tensor
    """1/|x|; 0 where there is no angle."""
    over2: Tensor


def _derivatives(n1: Tensor, n2: Tensor, sine: Tensor, half: Tensor) -> _Derivatives:
    zero1, zero2 = n1 == 0, n2 == 0
    defined = (sine > 0) & ~zero1 & ~zero2
    # For x = 0 the basis of x̂ and the normal is (0, ŷ), in which ŷ is (0, 1); y = 0 has sine and half 0,
    # so it is taken for x̂, (1, 0).
    cosine = torch.where(zero1, 0.0, 1 - 2 * half.square())
    acute = half < 1
    # The root has an infinite derivative at half = 1, so it is not taken there.
    half_cosine = torch.where(acute, torch.sqrt(torch.where(acute, (1 - half) * (1 + half), 1.0)), 0.0)
    over1, over2 = (torch.where(defined, 1 / torch.where(defined, n, 1.0), 0.0) for n in (n1, n2))
    return _Derivatives(zero1, cosine, torch.where(zero1, 1.0, sine), half_cosine / 2, over1, over2)


def _corner(x: Tensor, y: Tensor, data: torch.dtype) -> tuple[Tensor, ...]:
    (a, scale1), (b, scale2) = in_range(x, data), in_range(y, data)
    square = dot(a, a)
    zero = square == 0
    square = torch.where(zero, 1.0, square)
    s = dot(a, b) / square
    # 26 bits of s: with the 24 of float32 data the products head·a are exact in float64.
    head = _leading(s)
    across, rest, low, noise = _across(data == a.dtype, a, b, head, square)
    size = torch.linalg.vector_norm(across, dim=-1)
    n1 = torch.where(zero, 0.0, torch.sqrt(square))
    # What is no more than rounding is nothing: points on one ray are found to be.
    size = torch.where(size <= 8 * noise * n1, 0.0, size)
    along = (head + rest) * n1
    # Pythagoras, with along = s|x| the part of y along x and |ρ| across it: nothing cancels.
    n2 = torch.hypot(along, size)
    defined = ~zero & (n2 > 0)
    n2_or_1 = torch.where(defined, n2, 1.0)
    sine, cosine = size / n2_or_1, along / n2_or_1
    obtuse = cosine < 0
    # √((1 - cos θ)/2) cancels for small angles and sin θ/(2 cos(θ/2)) for those near π: each where it holds.
    half = torch.where(
        obtuse,
        torch.sqrt((1 - cosine) / 2),
        sine / torch.sqrt(2 * (1 + torch.where(obtuse, 0.0, cosine))),
    )
    ratio = scale2 / scale1
    # Lengths a factor 2 or more apart are subtracted as they are: that loses a bit at most.
    like = defined & (n2 * ratio < 2 * n1) & (n1 < 2 * n2 * ratio)
    most = torch.finfo(a.dtype).max
    t1, t2 = (scale1 * n1).clamp(max=most), (scale2 * n2).clamp(max=most)
    # (s-1)(s+1)|x|² + |ρ|², over |x|+|y|; with the scales, which are equal or a factor 2 or 4 apart. For near
    # points the first two differences are exact, so s - 1 has all the digits that s has in three parts.
    over = ((head * ratio - 1) + rest * ratio + low * ratio) * ((head + rest) * ratio + 1) * n1
    over = (over + size * ratio * (size * ratio / torch.where(zero, 1.0, n1))) / (1 + n2 * ratio / n1)
    gap = torch.where(like, -scale1 * over, t1 - t2)
    sine, half = (torch.where(defined, value, 0.0) for value in (sine, half))
    return t1, t2, gap, sine, half, head, size


class _Across(NamedTuple):
    """The part ρ of b across a, and s = b·a/|a|² beyond its leading bits."""

    vector: Tensor
    rest: Tensor
    """s less its leading bits."""
    low: Tensor
    """What s has beyond both, for a sum in which the leading bits cancel."""
    noise: Tensor
    """The rounding of ρ, over |a|."""


def _across(wide: bool, a: Tensor, b: Tensor, head: Tensor, square: Tensor) -> _Across:
    """The part of b across a, with ``head`` the leading bits of b·a/|a|²; wide data has rounded products."""
    if wide:
        return _across_exactly(a, b, square, head)
    # head·a is exact, so for near parallels the difference is too. What s has beyond its head is still in it,
    # and is taken away by the second step.
    across = torch.addcmul(b, a, -head[..., None])
    rest = dot(across, a) / square
    unit = torch.finfo(a.dtype).eps
    return _Across(
        torch.addcmul(across, a, -rest[..., None]), rest, torch.zeros_like(rest), unit * rest.abs()
    )


def _wide_and_across(
    x: Tensor, y: Tensor, n1: Tensor, head: Tensor, data: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``x``, and the part of ``y`` across it as :func:`_corner` had it: divided by the scale of ``y``."""
    (a, scale1), (b, _) = in_range(x, data), in_range(y, data)
    square = torch.where(n1 == 0, 1.0, (n1 / scale1).square())
    return x.to(a.dtype), _across(data == a.dtype, a, b, head, square).vector


def _normal(x: Tensor, y: Tensor, n1: Tensor, head: Tensor, size: Tensor, data: torch.dtype) -> Tensor:
    """The unit vector across x towards y, 0 where there is none."""
    _, across = _wide_and_across(x, y, n1, head, data)
    some = (size != 0)[..., None]
    return torch.where(some, across / torch.where(some, size[..., None], 1.0), 0.0)


def _differentiable_normal(
    x: Tensor, y: Tensor, n1: Tensor, n2: Tensor, sine: Tensor, normal: Tensor
) -> Tensor:
    """``normal`` with the derivative of (y - (y·x̂) x̂)/|…|."""
    size = torch.where(n1 == 0, n2, n2 * sine)
    some = size > 0
    size = torch.where(some, size, 1.0)[..., None]
    unit, wide = unit_vector(x, n1), working(y)
    across = wide - dot(wide, unit)[..., None] * unit
    # The value is normal·size, the derivative that of the line above.
    across = across - across.detach() + normal * size.detach()
    return torch.where(some[..., None], across / size, 0.0)


def _across_exactly(a: Tensor, b: Tensor, square: Tensor, head: Tensor) -> _Across:
    """:func:`_across` with error-free transformations, so that ρ is right to rounding however small it is.

    Dekker's splitting makes the products exact and Knuth's sum keeps what the difference rounds off: with u
    the unit roundoff, ``across + lost`` is b - head·a without error, of size √u·|b| where b is nearly
    parallel to a. Its part along a is known to a relative u, so that what the second step leaves along a is
    u√u·|b|. Two float64 vectors that are parallel but for the rounding of their coordinates have |ρ| of
    u·|b|: the third step takes away what is left, without which ρ would keep only half of its digits.
    """
    unit = torch.finfo(a.dtype).eps
    a1 = _leading(a)
    a2 = a - a1
    near = b - a1 * head[..., None]
    small = a2 * head[..., None]
    across = near - small
    # Knuth's two-sum: `lost` is what the subtraction above rounded off, exactly.
    back = across - near
    lost = (near - (across - back)) - (small + back)
    rest = dot(across, a) / square
    t = rest[..., None]
    t1 = _leading(t)
    t2 = t - t1
    product = a * t
    # Dekker's product: what rounding a·t lost, exactly, when its terms are added in this order.
    rounded = ((a1 * t1 - product) + a1 * t2 + a2 * t1) + a2 * t2
    across = (across - product) + (lost - rounded)
    low = dot(across, a) / square
    noise = unit * (low.abs() + unit * rest.abs())
    return _Across(torch.addcmul(across, a, -low[..., None]), rest, low, noise)


def _leading(s: Tensor) -> Tensor:
    """The leading half of the bits of s (Veltkamp)."""
    bits = -round(math.log2(torch.finfo(s.dtype).eps)) + 1
    # For float64 the factor is 2^27 + 1; what the differences leave is s rounded to its upper 26 bits.
    high = s * (2.0 ** ((bits + 1) // 2) + 1)
    return high - (high - s)
