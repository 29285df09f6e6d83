"""Gradients by every argument of every function where a vector vanishes, or two of them coincide.

A function that takes the direction of a vector has no direction there, and one over a tiny length next to it.
The exact gradients are central differences, with fifty digits, of the textbook's formulas.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import mpmath as mp
import pytest
import torch
from torch import Tensor

from riemann_unlearn import geometry as g
from riemann_unlearn.diagnostics import reference as ref
from riemann_unlearn.geometry import tangent

F32, F64 = torch.float32, torch.float64
C = 0.75
"""A curvature magnitude that every dtype holds; the second one of Lorentz, 1/C, is rounded alike."""
UNITS = {F32: 4.0, F64: 64.0}
"""Of the dtype's ε, relative to the largest number of a gradient: DESIGN's bar, and float64's own."""

Vector = list[mp.mpf]


class Case(NamedTuple):
    ours: Callable[..., Tensor]
    exact: Callable[..., Vector]
    """Of lists of numbers and c."""
    slots: str
    """Of each argument: a point x or y, a tangent vector u or v, one at the origin t, a point of a ball b."""


def zeros(x: Vector) -> Vector:
    return [mp.mpf(0)] * len(x)


def transp0(y: Vector, u: Vector, c: mp.mpf) -> Vector:
    return ref.transp(zeros(y), y, u, c)


def transp0back(x: Vector, u: Vector, c: mp.mpf) -> Vector:
    return ref.transp(x, zeros(x), u, c)


def inner(x: Vector, u: Vector, v: Vector, c: mp.mpf) -> Vector:
    return [ref.dot(u, v) - ref.dot(x, u) * ref.dot(x, v) / ref.time(x, c) ** 2]


def to_poincare(x: Vector, c: mp.mpf) -> Vector:
    return [a / (1 + mp.sqrt(c) * ref.time(x, c)) for a in x]


def from_poincare(b: Vector, c: mp.mpf) -> Vector:
    return [2 * a / (1 - c * ref.dot(b, b)) for a in b]


def ambient(x: Vector, c: mp.mpf) -> Vector:
    return [ref.time(x, c), *x]


def between(x: Vector, y: Vector, t: mp.mpf, c: mp.mpf) -> Vector:
    d = mp.sqrt(c) * ref.dist(x, y, c)[0]
    shares = [mp.sinh(s * d) / mp.sinh(d) if d else s for s in (1 - t, t)]
    return [shares[0] * a + shares[1] * b for a, b in zip(x, y, strict=True)]


def centroid(x: Vector, y: Vector, c: mp.mpf) -> Vector:
    p = [a + b for a, b in zip(ambient(x, c), ambient(y, c), strict=True)]
    size = mp.sqrt(c * (p[0] ** 2 - ref.dot(p[1:], p[1:])))
    return [a / size for a in p[1:]]


def lifted(function: Callable[..., Vector]) -> Callable[..., Vector]:
    """A function of points, of tangent vectors at the origin."""

    def of_tangents(*arguments: Vector | mp.mpf) -> Vector:
        *vectors, c = arguments
        return function(*(ref.expmap0(v, c) for v in vectors), c)

    return of_tangents


MANIFOLDS = {dtype: g.Lorentz(torch.tensor(1 / C, dtype=dtype)) for dtype in (F32, F64)}


def lorentz(name: str, slots: str) -> Callable[..., Tensor]:
    """A method of the manifold, as a function of space components."""

    def method(*arguments: Tensor) -> Tensor:
        *vectors, c = arguments
        made = dict(zip(slots, vectors, strict=True))
        points = {slot: g.to_ambient(made[slot], c) for slot in "xy" if slot in made}
        tangents = {}
        for slot, vector in made.items():
            if slot in "uv":
                time = (made["x"] * vector).sum(-1, keepdim=True) / points["x"][..., :1]
                tangents[slot] = torch.cat([time, vector], -1)
            elif slot == "t":
                tangents[slot] = torch.nn.functional.pad(vector, (1, 0))
        ready = points | tangents
        result = getattr(MANIFOLDS[vectors[0].dtype], name)(*(ready[slot] for slot in slots))
        moved: Tensor = result[..., 1:] if result.ndim == vectors[0].ndim else result
        return moved

    return method


def projected(x: Vector, w: Vector, c: mp.mpf) -> Vector:
    """Space components of the tangent part of the ambient vector (0.5, w) at x."""
    product = ref.dot(x, w) - ref.time(x, c) / 2
    return [b + c * product * a for a, b in zip(x, w, strict=True)]


def gradient_of(x: Vector, w: Vector, c: mp.mpf) -> Vector:
    product = ref.dot(x, w) + ref.time(x, c) / 2
    return [b + c * product * a for a, b in zip(x, w, strict=True)]


def with_half(name: str) -> Callable[..., Tensor]:
    def method(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
        vector = torch.cat([torch.full_like(w[..., :1], 0.5), w], -1)
        result: Tensor = getattr(MANIFOLDS[x.dtype], name)(g.to_ambient(x, c), vector)
        return result[..., 1:]

    return method


CASES = {
    "dist": Case(g.dist, ref.dist, "xy"),
    "exterior_angle": Case(g.exterior_angle, ref.exterior_angle, "xy"),
    "dist0": Case(g.dist0, ref.dist0, "x"),
    "half_aperture": Case(g.half_aperture, ref.half_aperture, "x"),
    "expmap0": Case(g.expmap0, ref.expmap0, "t"),
    "logmap0": Case(g.logmap0, ref.logmap0, "x"),
    "expmap": Case(g.expmap, ref.expmap, "xu"),
    "logmap": Case(g.logmap, ref.logmap, "xy"),
    "parallel_transport": Case(g.parallel_transport, ref.transp, "xyu"),
    "parallel_transport0": Case(g.parallel_transport0, transp0, "xt"),
    "parallel_transport0back": Case(g.parallel_transport0back, transp0back, "xu"),
    "inner": Case(g.inner, inner, "xuv"),
    "to_ambient": Case(g.to_ambient, ambient, "x"),
    "to_poincare": Case(g.to_poincare, to_poincare, "x"),
    "from_poincare": Case(g.from_poincare, from_poincare, "b"),
    "midpoint": Case(g.midpoint, lambda x, y, c: between(x, y, mp.mpf(0.5), c), "xy"),
    "geodesic": Case(
        lambda x, y, c: g.geodesic(x, y, 0.25, c), lambda x, y, c: between(x, y, mp.mpf(0.25), c), "xy"
    ),
    "centroid": Case(lambda x, y, c: g.centroid(torch.stack([x, y], -2), c), centroid, "xy"),
    "cdist": Case(lambda x, y, c: g.cdist(x, y, c, fix_near="all")[0], ref.dist, "xy"),
    "tangent.dist": Case(tangent.dist, lifted(ref.dist), "xy"),
    "tangent.dist0": Case(tangent.dist0, lifted(ref.dist0), "x"),
    "tangent.exterior_angle": Case(tangent.exterior_angle, lifted(ref.exterior_angle), "xy"),
    "tangent.half_aperture": Case(tangent.half_aperture, lifted(ref.half_aperture), "x"),
    "tangent.cdist": Case(lambda x, y, c: tangent.cdist(x, y, c, fix_near="all")[0], lifted(ref.dist), "xy"),
    "Lorentz.dist": Case(lorentz("dist", "xy"), ref.dist, "xy"),
    "Lorentz.dist0": Case(lorentz("dist0", "x"), ref.dist0, "x"),
    "Lorentz.exterior_angle": Case(lorentz("exterior_angle", "xy"), ref.exterior_angle, "xy"),
    "Lorentz.half_aperture": Case(lorentz("half_aperture", "x"), ref.half_aperture, "x"),
    "Lorentz.expmap": Case(lorentz("expmap", "xu"), ref.expmap, "xu"),
    "Lorentz.expmap0": Case(lorentz("expmap0", "t"), ref.expmap0, "t"),
    "Lorentz.logmap": Case(lorentz("logmap", "xy"), ref.logmap, "xy"),
    "Lorentz.logmap0": Case(lorentz("logmap0", "x"), ref.logmap0, "x"),
    "Lorentz.logmap0back": Case(lorentz("logmap0back", "x"), lambda x, c: ref.logmap(x, zeros(x), c), "x"),
    "Lorentz.transp": Case(lorentz("transp", "xyu"), ref.transp, "xyu"),
    "Lorentz.transp0": Case(lorentz("transp0", "xt"), transp0, "xt"),
    "Lorentz.transp0back": Case(lorentz("transp0back", "xu"), transp0back, "xu"),
    "Lorentz.inner": Case(lorentz("inner", "xuv"), inner, "xuv"),
    "Lorentz.norm": Case(lorentz("norm", "xu"), lambda x, u, c: [mp.sqrt(inner(x, u, u, c)[0])], "xu"),
    "Lorentz.proju": Case(with_half("proju"), projected, "xt"),
    "Lorentz.egrad2rgrad": Case(with_half("egrad2rgrad"), gradient_of, "xt"),
}
EXCEPT = {"from_ambient", "arcosh", "arcosh1p", "tangent", "Lorentz"}
"""Functions without a degenerate argument (they copy, or take numbers), and what is no function."""


def test_every_function_is_here() -> None:
    assert set(g.__all__) - EXCEPT <= set(CASES)
    assert {f"tangent.{name}" for name in tangent.__all__} <= set(CASES)


BASES: dict[str, list[float]] = {
    "origin": [0.0, 0.0, 0.0],
    "tiny": [3e-9, -2e-9, 5e-9],
    "tinier": [-1e-20, 4e-21, 2e-20],
    "plain": [0.5, -0.25, 0.375],
    "far": [40.0, 120.0, -75.0],
}
SECOND: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda x: x,
    "opposite": lambda x: -x,
    "near": lambda x: x * torch.tensor([1, 1 + 2**-20, 1 - 2**-21], dtype=x.dtype),
    "ray": lambda x: 2 * x,
    "origin": torch.zeros_like,
    "tiny": lambda x: torch.tensor([-2e-9, 1e-9, 4e-9], dtype=x.dtype),
    "other": lambda x: torch.tensor([-0.75, 0.5, 1.25], dtype=x.dtype),
}
VECTOR: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "tiny": lambda x: torch.tensor([2e-10, 1e-10, -3e-10], dtype=x.dtype),
    "along": lambda x: x / x.norm().clamp(min=1),
    "across": lambda x: torch.stack([x[1], -x[0], 0 * x[2]]) / x.norm().clamp(min=1),
    "other": lambda x: torch.tensor([0.25, 0.5, -1.0], dtype=x.dtype),
}


def configurations(slots: str, dtype: torch.dtype) -> Iterator[tuple[str, list[Tensor]]]:
    """Arguments, and what they are to the first one."""
    for base, values in BASES.items():
        first = torch.tensor(values, dtype=dtype)
        if slots[0] == "b":
            first = first / (1 + 2 * first.norm())
        if slots[0] == "t":
            first = first.clamp(-2, 2)
        choices = [list((SECOND if slot == "y" else VECTOR).items()) for slot in slots[1:]]
        choices = choices if len(slots) < 3 else [choices[0], choices[1][::2]]
        for chosen in itertools.product(*choices):
            names = "/".join((base, *(name for name, _ in chosen)))
            yield names, [first, *(make(first) for _, make in chosen)]


def is_kink(name: str, arguments: Sequence[Tensor]) -> bool:
    """Where the exact function has no gradient, and ours is 0 by convention."""
    x, plain = arguments[0], name.rpartition(".")[2]
    zero = not bool(x.any())
    if plain == "dist0":
        return zero
    if plain in ("dist", "cdist"):
        return bool((x == arguments[1]).all())
    if plain == "norm":
        return not bool(arguments[1].any())
    if plain == "exterior_angle":
        (a, b, c), (p, q, r) = ([Fraction(t) for t in v.tolist()] for v in arguments)
        return zero or (a * q == b * p and b * r == c * q and a * r == c * p)
    return False


WEIGHTS = (1.0, -0.5, 2.0, 0.25)


def distance(a: Sequence[mp.mpf], b: Sequence[mp.mpf]) -> mp.mpf:
    return max(abs(s - t) for s, t in zip(a, b, strict=True))


def shift(
    whole: Callable[[Sequence[Vector]], mp.mpf],
    exact: Sequence[Vector],
    curvature: mp.mpf,
    number: int,
    unit: float,
) -> mp.mpf:
    """What half a unit in the last place of the coordinates does to an ill-conditioned gradient."""
    gradients = []
    for signs in ((1, -1, 1, 1, -1), (-1, 1, 1, -1, 1), (0, 0, 0, 0, 0)):
        moved = [
            [t * (1 + unit * sign) for t, sign in zip(a, signs[which:], strict=False)]
            for which, a in enumerate(exact)
        ]
        gradients.append(ref.exact_gradient(whole, [*moved, [curvature]])[number])
    return max(distance(g, gradients[-1]) for g in gradients[:-1])


def worst(name: str, case: Case, dtype: torch.dtype) -> dict[str, tuple[float, str]]:
    """The largest error of a gradient by each argument, in units of ε."""
    info = torch.finfo(dtype)
    errors: dict[str, tuple[float, str]] = {}
    for label, arguments in configurations(case.slots, dtype):
        leaves = [a.clone().requires_grad_() for a in arguments]
        c = torch.tensor(C, dtype=dtype, requires_grad=True)
        shaped = [leaf[None] for leaf in leaves] if name.endswith("cdist") else leaves
        value = case.ours(*shaped, c).reshape(-1)
        weights = WEIGHTS[: len(value)]
        total = (value * value.new_tensor(weights)).sum()
        gradients = torch.autograd.grad(total, [*leaves, c], allow_unused=True)
        if is_kink(name, arguments):
            for gradient in gradients[: len(leaves)]:
                assert gradient is None or not gradient.any(), (label, gradient)
            continue
        exact = [[mp.mpf(t) for t in a.tolist()] for a in arguments]
        with mp.workdps(200):

            def whole(moved: Sequence[Vector], weights: Sequence[float] = weights) -> mp.mpf:
                parts = case.exact(*moved[:-1], moved[-1][0])
                return mp.fsum(w * p for w, p in zip(weights, parts, strict=True))

            curvature = mp.mpf(C)
            want = ref.exact_gradient(whole, [*exact, [curvature]])
            # A derivative by c vanishes with the radius, as a difference of terms of the size of the value.
            size = max(abs(p) for p in case.exact(*exact, curvature)) / curvature
            for number, (slot, got) in enumerate(zip(f"{case.slots}c", gradients, strict=True)):
                if slot == "c" and name.startswith("Lorentz"):
                    continue  # it has a curvature of its own
                numbers = [0.0] * len(want[number]) if got is None else got.reshape(-1).tolist()
                error = distance([mp.mpf(t) for t in numbers], want[number])
                largest = max(abs(b) for b in want[number]) + (size if slot == "c" else 0)
                unit = info.eps * largest + info.smallest_normal * info.eps
                if error > UNITS[dtype] * unit:
                    unit += shift(whole, exact, curvature, number, info.eps / 2)
                message = f"{label}: {[float(b) for b in want[number]]}, got {numbers}"
                errors[slot] = max(errors.get(slot, (0.0, "")), (float(error / unit), message))
    return errors


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_where_vectors_vanish_or_coincide(name: str, dtype: torch.dtype) -> None:
    for slot, (units, message) in worst(name, CASES[name], dtype).items():
        assert units <= UNITS[dtype], f"gradient of {name} by {slot}: {units:.3g} units at {message}"
