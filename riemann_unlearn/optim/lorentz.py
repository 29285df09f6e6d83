r"""One step of many points on the hyperboloid, in closed form and in place.

Points, gradients and momenta are rows (N, D+1), ambient, time first. With c = 1/k, the Euclidean gradient
g at p gives the Riemannian gradient

.. math:: r = Jg + a\,p,\qquad a = c\,(p\cdot g),\qquad \|r\|^2 = g\cdot Jg + k a^2,

where J flips the sign of time. A tangent vector m is held as :math:`m = q + δp` with
:math:`δ = m_t/p_t`, so that q has no time component and

.. math:: \|m\|^2 = |q|^2 + k δ^2,

a sum without cancellation, however far out: the usual :math:`|m_s|^2 - m_t^2` loses all of float32 at a
radius of 8. An adaptive optimizer with one second moment a point moves along its momentum,
:math:`u = -s\,m`, so transport needs no more than the velocity at the end of the geodesic. With
:math:`n = \sqrt c\,s\|m\|`, :math:`w = -\sqrt c\,\|m\|\tanh(n/2)` and
:math:`b = -\sinh n/(\sqrt c\,\|m\|)`, the exponential map and the transport are three shears:

.. math::

    m \leftarrow m + w p, \qquad p \leftarrow p + b m, \qquad m \leftarrow m + w p .

The time of a point is not carried along but taken from its space components, :math:`\sqrt{k+|x|^2}`: a
point is on the upper sheet to the rounding of its coordinates after any number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from riemann_unlearn import _jit

Scalar = float | Tensor
"""A number, or one for each row."""

Dot = Callable[[Tensor, Tensor, Tensor], Tensor]

TILE = 2**17
"""Elements of a tile on the CPU: the four arrays of a float32 step then share two mebibytes of cache."""


class Moment(NamedTuple):
    """The second moment of each row, and how it scales a step."""

    average: Tensor
    """(N,): running average of the squared length of the gradient."""
    largest: Tensor | None
    """(N,): its largest value so far, for AMSGrad."""
    beta: float
    correction: Scalar
    """1 - β₂^t."""
    eps: float


class Signatures(NamedTuple):
    """Weights of the coordinates, (D+1,), in sums of products."""

    all: Tensor
    space: Tensor
    lorentz: Tensor


def row_dot(rows: Tensor) -> Dot:
    """The weighted sum of x·y in each row, for tiles of ``rows``."""
    # Made once for all tiles. Every dot overwrites it, and has summed it before the next one comes.
    work = rows.new_empty(_height(rows), rows.shape[-1]) if rows.device.type == "cpu" else None

    def dot(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        product = x * y if work is None else torch.mul(x, y, out=work[: len(x)])
        # The weights carry the signature: no signed copy of x, and time is left out without a slice.
        return torch.mv(product, weights)

    return dot


def tiles(*rows: Tensor | None) -> Iterator[list[Any]]:
    """The same blocks of rows of each tensor: blocks that fit a CPU's cache, elsewhere all rows."""
    points = next(tensor for tensor in rows if tensor is not None)
    height = _height(points) if points.device.type == "cpu" else len(points)
    for start in range(0, len(points), max(height, 1)):
        yield [None if tensor is None else tensor[start : start + height] for tensor in rows]


def furthest(dtype: torch.dtype) -> float:
    """The largest √c·p_t that a step leads to, half the reciprocal of the dtype's ε.

    A radius of 15.9 in float32 and 36.0 in float64. There, rounding alone turns a momentum by half its
    length; further out it has no direction left, and lengths computed from it are noise.
    """
    return 0.5 / torch.finfo(dtype).eps


def adam_rows(
    points: Tensor,
    gradients: Tensor,
    momenta: Tensor,
    moment: Moment,
    k: Scalar,
    *,
    beta: float,
    step_size: Scalar,
    longest: float = math.inf,
) -> None:
    """One Adam step of every row, in place in points, momenta and moment.

    On the CPU by a compiled kernel where numba is there, elsewhere and for numbers that are tensors by torch.

    Parameters
    ----------
    points, gradients, momenta : Tensor, shape (N, D+1)
        Contiguous rows, float32 or float64.
    moment : Moment
    k : float or 0-dim Tensor
    beta : float
        β₁.
    step_size : float or Tensor
        Learning rate over the first bias correction; a number, or one a row.
    longest : float
        Cap of the geodesic length of the step.
    """
    numbers = k, moment.correction, step_size
    if (
        points.device.type == "cpu"
        and not any(isinstance(value, Tensor) for value in numbers)
        and _jit.is_available()
    ):
        _compiled_adam_rows(points, gradients, momenta, moment, k, beta, step_size, longest)
        return
    signs, dot = _signatures(points), row_dot(points)
    correction, scale = _per_row(moment.correction), _per_row(step_size)
    blocks = tiles(points, gradients, momenta, moment.average, moment.largest, correction, scale)
    for p, g, m, v, top, block_correction, block_scale in blocks:
        square, time, delta, length = accumulate(p, g, m, signs, k, beta, dot)
        v.mul_(moment.beta).add_(square, alpha=1 - moment.beta)
        if top is not None:
            # Of the averages as they are, before the bias correction, as in torch and geoopt.
            v = torch.maximum(top, v, out=top)
        denominator = v / (moment.correction if correction is None else block_correction)
        scaled = step_size if scale is None else block_scale
        still = not isinstance(scaled, Tensor) and scaled == 0
        speed = 0.0 if still else scaled / denominator.sqrt_().add_(moment.eps)
        move(p, m, time, delta, length, speed, k, longest, signs, dot)


def move(
    p: Tensor,
    m: Tensor,
    time: Tensor,
    delta: Tensor,
    length: Tensor,
    speed: Scalar,
    k: Scalar,
    longest: float,
    signs: Signatures,
    dot: Dot,
) -> None:
    """Move points p by -speed·(m = q + δp), where ``m`` holds q, and carry m along, in place."""
    if not isinstance(speed, Tensor) and speed == 0:  # not a bit of p is to change
        m.addcmul_(p, delta.unsqueeze(1))
        return
    # With b w = cosh n - 1, the first two shears leave p at cosh n p + b m, the exponential map, and the
    # third leaves m at cosh n m - √c|m| sinh n p, its velocity. δp joins q in the first: one pass less.
    w, b = step_coefficients(time, delta, length, speed, k, longest)
    m.addcmul_(p, (delta + w).unsqueeze(1))
    p.addcmul_(m, b.unsqueeze(1))
    m.addcmul_(p, w.unsqueeze(1))
    moved = dot(p, p, signs.space).add_(k).sqrt_()
    p[:, 0] = torch.where(
        b == 0, p[:, 0], moved
    )  # the stored time of a point that stays may be rounded otherwise


def accumulate(
    p: Tensor, g: Tensor, m: Tensor, signs: Signatures, k: Scalar, beta: float, dot: Dot
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make of momenta m the q of βm + (1-β)r; return |r|², p_t, and δ and |m| of the new m."""
    a = dot(p, g, signs.all).div_(k)
    # Squares that overflow stop the row, as they do in Adam, and do not make it NaN by inf - inf.
    square = dot(g, g, signs.lorentz).add_(a * a * k).clamp_min_(0).nan_to_num_(math.inf, math.inf)
    time = p[:, 0].contiguous()
    # From here on a is (1-β)a, of the new momentum; the square above needed all of it.
    a = a.mul_(1 - beta)
    # m_t/p_t of βm + (1-β)(Jg + ap): J gives g_t its minus, and the p_t of a p_t cancels.
    delta = (m[:, 0] * beta).sub_(g[:, 0] * (1 - beta)).div_(time).add_(a)
    # Space needs no J. What lerp makes of the time is wrong, and q has none: it is set to 0.
    m.lerp_(g, 1 - beta).addcmul_(p, (a - delta).unsqueeze(1))
    m[:, 0] = 0
    return square, time, delta, dot(m, m, signs.space).add_(delta * delta * k).sqrt_()


def sgd_rows(
    points: Tensor,
    gradients: Tensor,
    momenta: Tensor | None,
    k: Scalar,
    *,
    lr: Scalar,
    momentum: float,
    dampening: float,
    nesterov: bool,
    longest: float,
) -> None:
    """One step of gradient descent of every row, in place in points and momenta.

    ``momenta`` is None without momentum, and 0 before the first step.
    """
    signs, dot = _signatures(points), row_dot(points)
    for p, g, m in tiles(points, gradients, momenta):
        time = p[:, 0].clone()
        r = gradient_rows(p, g, k)
        if m is None:
            u = r
        else:
            m.mul_(momentum).add_(r, alpha=1 - dampening)
            # Without Nesterov u is m itself, and moving the point carries the momentum along in place.
            u = r.add_(m, alpha=momentum) if nesterov else m
        old = u.clone() if nesterov else u
        delta = u[:, 0] / time
        u.addcmul_(p, -delta.unsqueeze(1))
        u[:, 0] = 0
        square = dot(u, u, signs.space).add_(delta * delta * k)
        move(p, u, time, delta, square.sqrt(), lr, k, longest, signs, dot)
        if nesterov and (isinstance(lr, Tensor) or lr != 0):
            # Only the part of the momentum along the step turns with it.
            inner = dot(old, m, signs.lorentz)
            # The part of m along old, share times old, became share times u; the rest is as it was.
            share = inner.div_(square.clamp_min_(torch.finfo(p.dtype).tiny)).unsqueeze(1)
            m.addcmul_(u - old, share)
            # Tangent to the new point, to rounding: the time is what (p, m) = 0 asks for.
            m[:, 0] = dot(p, m, signs.space) / p[:, 0]


def gradient_rows(p: Tensor, g: Tensor, k: Scalar) -> Tensor:
    """The Riemannian gradients, ambient."""
    r = torch.addcmul(g, p, ((p * g).sum(-1, keepdim=True) / k))
    # J after the fact: +g_t above becomes -g_t.
    r[:, 0] -= 2 * g[:, 0]
    return r


def decay_rows(points: Tensor, momenta: Tensor | None, k: Scalar, keep: Scalar) -> None:
    """Move points to ``keep`` times their distance from the origin, and momenta along, in place.

    Lengths change by sinh(keep·r)/sinh r, taken as 1 plus a difference without cancellation: a decay of a
    millionth moves a point by a millionth, where the quotient is rounded by r units, and none not by a bit.
    """
    root = k**0.5
    space = points[:, 1:]
    size = torch.linalg.vector_norm(space, dim=-1)
    away = size > 0
    # At the origin the quotients below are 0/0. There the ratio is its limit, keep; any size will do.
    size = torch.where(away, size, 1)
    radius = torch.asinh(size / root)
    # sinh a - sinh b = 2 cosh((a+b)/2) sinh((a-b)/2), and cosh a - cosh b the same with sinh twice.
    half = torch.sinh(radius * ((keep - 1) / 2))
    longer = 2 * torch.cosh(radius * ((keep + 1) / 2)) * half * (root / size)  # (sinh keep·r - sinh r)/sinh r
    ratio = torch.where(away, 1 + longer, keep)
    if momenta is not None:
        # Transport keeps the part across the ray; the part along it is ρ(sinh r, cosh r x/|x|).
        along = torch.where(away, momenta[:, 0] * root / size, 0)
        change = 2 * torch.sinh(radius * ((keep + 1) / 2)) * half
        # Before the points are moved: the direction is that of the old space components, of length size.
        momenta[:, 1:].addcmul_(space, (along * change / size).unsqueeze(1))
        momenta[:, 0] *= ratio
    space.mul_(ratio.unsqueeze(1))
    # The stored time may be rounded otherwise, and a point that is to stay keeps its bits.
    points[:, 0] = torch.where(ratio == 1, points[:, 0], (space.square().sum(-1) + k).sqrt_())


def step_coefficients(
    time: Tensor, delta: Tensor, size: Tensor, speed: Scalar, k: Scalar, longest: float
) -> tuple[Tensor, Tensor]:
    r"""The w and b of a step of length ``speed`` times |m| along -m, no longer than it may be.

    Beyond the cap, a step is cut off where the point would come to lie beyond :func:`furthest`: with κ
    the cosine between the step and the outward ray, p_t grows by A = cosh n + κ sinh n, which is at most
    A for :math:`e^n ≤ (A + \sqrt{A^2 - 1 + κ^2})/(1 + κ)`.
    """
    info = torch.finfo(time.dtype)
    root = k**0.5
    # An infinite length (its square overflowed) meets a speed of 0, and the row stays where it is.
    size = size.clamp(info.tiny, info.max)
    n = (size * speed).div_(root)
    # κ = -√k δ/|m|, for p_t becomes p_t(cosh n + κ sinh n). As |m|² = |q|² + kδ², it is within ±1 but for
    # rounding.
    outward = (delta / size).mul_(-root).clamp_(-1, 1)
    # A is 1 for a point that lies beyond already: outward it stays, inward it may go until it is as far out
    # again. Nor can A² - 1 + κ² be negative then.
    growth = (furthest(time.dtype) * root / time).clamp_min_(1)
    # From A = cosh n + κ sinh n, a quadratic in eⁿ. 1 + κ is rounded to 0 straight toward the origin; the
    # floor makes the bound smaller, never larger.
    most = (growth + (growth.square() + (outward.square() - 1)).sqrt_()) / (1 + outward).clamp_min_(info.eps)
    n = torch.minimum(n, most.log_()).clamp_max_(longest / root)
    # sinh n = tanh(n/2)·(1 + cosh n): no term cancels, and unlike sinh both are vectorized.
    # half first: exp_ overwrites n. The last line overwrites half, of which b is made.
    half = torch.tanh(n / 2)
    grown = n.exp_()
    b = (grown + 1 / grown).div_(2).add_(1).mul_(half).div_(size).mul_(-root)
    return half.mul_(size).div_(-root), b


def _compiled_adam_rows(
    points: Tensor,
    gradients: Tensor,
    momenta: Tensor,
    moment: Moment,
    k: Scalar,
    beta: float,
    step_size: Scalar,
    longest: float,
) -> None:
    from riemann_unlearn.optim import lorentz_rows

    # The kernel wants an array for the largest moment too. Without AMSGrad it reads none: the average again.
    tensors = points, gradients, momenta, moment.average, moment.average
    if moment.largest is not None:
        tensors = *tensors[:4], moment.largest
    # Numbers as floats, for numba compiles once more for every other combination of types.
    with _jit.threads():
        lorentz_rows.adam(
            *(tensor.numpy() for tensor in tensors),
            moment.largest is not None,
            *(float(value) for value in (k, beta, moment.beta, moment.correction, moment.eps)),
            *(float(value) for value in (step_size, longest, furthest(points.dtype))),
            torch.finfo(points.dtype).eps,
        )


def _signatures(rows: Tensor) -> Signatures:
    one = rows.new_ones(rows.shape[-1])
    space, lorentz = one.clone(), one.clone()
    space[0], lorentz[0] = 0, -1
    return Signatures(one, space, lorentz)


def _height(rows: Tensor) -> int:
    """Rows of a tile."""
    return max(1, min(len(rows), TILE // rows.shape[-1]))


def _per_row(value: Scalar) -> Tensor | None:
    return value if isinstance(value, Tensor) and value.ndim > 0 else None
