r"""The geometry in arbitrary precision: what every value and gradient of an audit is compared with.

Points are mpmath vectors of space components on the hyperboloid of curvature -c. The formulas are the
textbook's (arcosh of an inner product, the law of cosines) with as many digits as they cancel, and share
nothing with the library's. A :class:`Chart` translates to and from the coordinates of a library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mpmath as mp

Vector = list[mp.mpf]


def dot(x: Sequence[mp.mpf], y: Sequence[mp.mpf]) -> mp.mpf:
    """Euclidean inner product."""
    return mp.fsum(a * b for a, b in zip(x, y, strict=True))


def time(x: Vector, c: mp.mpf) -> mp.mpf:
    """√(1/c + |x|²)."""
    return mp.sqrt(1 / c + dot(x, x))


def dist(x: Vector, y: Vector, c: mp.mpf) -> Vector:
    """arcosh(-c⟨x,y⟩)/√c."""
    cosh = c * (time(x, c) * time(y, c) - dot(x, y))
    # Of equal points rounding can leave a cosh below 1.
    return [mp.acosh(max(cosh, mp.mpf(1))) / mp.sqrt(c)]


def dist0(x: Vector, c: mp.mpf) -> Vector:
    """The distance to the origin."""
    return dist(x, [mp.mpf(0)] * len(x), c)


def half_aperture(x: Vector, c: mp.mpf) -> Vector:
    """asin(min(1, 2K/(√c|x|))) with K = 0.1 as a float has it."""
    size = mp.sqrt(c * dot(x, x))
    return [mp.asin(2 * mp.mpf(0.1) / size) if size > 2 * mp.mpf(0.1) else mp.pi / 2]


def exterior_angle(x: Vector, y: Vector, c: mp.mpf) -> Vector:
    """MERU's equation 9, by the law of cosines."""
    inner = c * (dot(x, y) - time(x, c) * time(y, c))
    # √(cosh²D - 1) is sinh D, so this is the cosine from the law of cosines, with sinh r₁ sinh D below the
    # line, which is 0 for x at the origin and for x = y: whoever calls this leaves those out.
    across = mp.sqrt(dot(x, x)) * mp.sqrt(inner**2 - 1)
    return [mp.acos(max(min((time(y, c) + inner * time(x, c)) / across, mp.mpf(1)), mp.mpf(-1)))]


def expmap0(v: Vector, c: mp.mpf) -> Vector:
    """V sinh(√c|v|)/(√c|v|)."""
    r = mp.sqrt(c * dot(v, v))
    return [a * mp.sinh(r) / r if r else a for a in v]


def logmap0(x: Vector, c: mp.mpf) -> Vector:
    """Its inverse."""
    m = mp.sqrt(c * dot(x, x))
    return [a * mp.asinh(m) / m if m else a for a in x]


def expmap(x: Vector, u: Vector, c: mp.mpf) -> Vector:
    """cosh(n) x + sinh(n)/n u, n = √c‖u‖."""
    n = mp.sqrt(c * (dot(u, u) - (dot(x, u) / time(x, c)) ** 2))
    ratio = mp.sinh(n) / n if n else mp.mpf(1)
    return [mp.cosh(n) * a + ratio * b for a, b in zip(x, u, strict=True)]


def logmap(x: Vector, y: Vector, c: mp.mpf) -> Vector:
    """D (y - cosh(D) x)/sinh(D), D = √c d."""
    (d,) = dist(x, y, c)
    r = mp.sqrt(c) * d
    ratio = r / mp.sinh(r) if r else mp.mpf(1)
    return [ratio * (b - mp.cosh(r) * a) for a, b in zip(x, y, strict=True)]


def transp(x: Vector, y: Vector, u: Vector, c: mp.mpf) -> Vector:
    """U + c⟨y,u⟩/(1 - c⟨x,y⟩) (x + y)."""
    inner = dot(x, y) - time(x, c) * time(y, c)
    # ⟨y,u⟩ with the time component x·u/x_t that tangency gives u.
    factor = c * (dot(y, u) - time(y, c) * dot(x, u) / time(x, c)) / (1 - c * inner)
    return [w + factor * (a + b) for a, b, w in zip(x, y, u, strict=True)]


@dataclass(frozen=True)
class Operation:
    """An operation of a manifold: what its arguments and its result are, and its value."""

    name: str
    arguments: tuple[str, ...]
    """Each "point", "vector0" (a tangent vector at the origin) or "vector" (one at the first point)."""
    result: str
    """"number", "point", "vector0", "vector" (at the first point) or "vector1" (at the second)."""
    value: Callable[..., Vector]


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("dist", ("point", "point"), "number", dist),
        Operation("dist0", ("point",), "number", dist0),
        Operation("expmap0", ("vector0",), "point", expmap0),
        Operation("logmap0", ("point",), "vector0", logmap0),
        Operation("expmap", ("point", "vector"), "point", expmap),
        Operation("logmap", ("point", "point"), "vector", logmap),
        Operation("transp", ("point", "point", "vector"), "vector1", transp),
        Operation("half_aperture", ("point",), "number", half_aperture),
        Operation("exterior_angle", ("point", "point"), "number", exterior_angle),
    )
}


@dataclass(frozen=True)
class Chart:
    """Coordinates of points and tangent vectors, and their passage to space components and back."""

    name: str
    to_space: Callable[[Vector, mp.mpf], Vector]
    from_space: Callable[[Vector, mp.mpf], Vector]
    push: Callable[[Vector, Vector, mp.mpf], Vector]
    """A tangent vector at a point in this chart, to space components."""
    pull: Callable[[Vector, Vector, mp.mpf], Vector]
    """A tangent vector in space components at a point in space components, to this chart."""


def _same(x: Vector, c: mp.mpf) -> Vector:
    return x


def _same_vector(x: Vector, u: Vector, c: mp.mpf) -> Vector:
    return u


def _from_ball(b: Vector, c: mp.mpf) -> Vector:
    return [2 * a / (1 - c * dot(b, b)) for a in b]


def _to_ball(x: Vector, c: mp.mpf) -> Vector:
    return [a / (1 + mp.sqrt(1 + c * dot(x, x))) for a in x]


def _push_ball(b: Vector, u: Vector, c: mp.mpf) -> Vector:
    # The derivative of _from_ball along u. At the origin it is 2u: the ball's metric there is 4 times ours.
    below = 1 - c * dot(b, b)
    along = 4 * c * dot(b, u) / below**2
    return [2 * w / below + along * a for a, w in zip(b, u, strict=True)]


def _pull_ball(x: Vector, u: Vector, c: mp.mpf) -> Vector:
    # The derivative of _to_ball along u.
    t = mp.sqrt(1 + c * dot(x, x))
    along = c * dot(x, u) / t / (1 + t) ** 2
    return [w / (1 + t) - along * a for a, w in zip(x, u, strict=True)]


SPACE = Chart("space", _same, _same, _same_vector, _same_vector)
BALL = Chart("ball", _from_ball, _to_ball, _push_ball, _pull_ball)
TANGENT = Chart("tangent", expmap0, logmap0, _same_vector, _same_vector)
"""Points by their logarithm at the origin; no operation on tangent vectors is audited in it."""
CHARTS = {chart.name: chart for chart in (SPACE, BALL, TANGENT)}


def evaluate(operation: Operation, chart: Chart, arguments: Sequence[Vector], c: float) -> Vector:
    """The operation on coordinates of the chart."""
    curvature = mp.mpf(c)
    kinds = zip(arguments, operation.arguments, strict=True)
    points = [chart.to_space(a, curvature) for a, kind in kinds if kind == "point"]
    origin = [mp.mpf(0)] * len(arguments[0])
    space = iter(points)
    ready = []
    for a, kind in zip(arguments, operation.arguments, strict=True):
        if kind == "point":
            ready.append(next(space))
        else:
            ready.append(chart.push(arguments[0] if kind == "vector" else origin, a, curvature))
    result = operation.value(*ready, curvature)
    if operation.result == "number":
        return result
    if operation.result == "point":
        return chart.from_space(result, curvature)
    # `and` keeps an operation without points from asking for one; its result is at the origin.
    at = {"vector0": origin, "vector": points[:1] and points[0], "vector1": points[-1:] and points[-1]}
    return chart.pull(at[operation.result], result, curvature)


def exact_gradient(
    function: Callable[[Sequence[Vector]], mp.mpf], arguments: Sequence[Vector]
) -> list[Vector]:
    """Of a scalar function, by central differences with a third of the digits as the step."""
    gradient = []
    for which, argument in enumerate(arguments):
        row = []
        for axis, value in enumerate(argument):
            # Central differences are off by step², and rounding by 10^-digits over the step: with a third of
            # the digits both leave two thirds of them.
            step = mp.mpf(10) ** (-mp.mp.dps // 3) * max(abs(value), _typical(argument))
            sides = []
            for sign in (1, -1):
                moved = [list(a) for a in arguments]
                moved[which][axis] = value + sign * step
                sides.append(function(moved))
            row.append((sides[0] - sides[1]) / (2 * step))
        gradient.append(row)
    return gradient


def _typical(x: Vector) -> mp.mpf:
    size = mp.sqrt(dot(x, x))
    return size if size else mp.mpf(1)
