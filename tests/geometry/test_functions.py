"""Every function through the same gauntlet: gradients, mapping, compilation, autocast, shapes, finiteness."""

from __future__ import annotations

import math
from collections.abc import Callable

import geoopt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from riemann_unlearn import geometry as g
from riemann_unlearn.geometry import tangent as t
from riemann_unlearn.geometry.precision import range_root

F32, F64 = torch.float32, torch.float64

UNARY: dict[str, Callable[..., Tensor]] = {
    "expmap0": g.expmap0,
    "logmap0": g.logmap0,
    "dist0": g.dist0,
    "half_aperture": g.half_aperture,
    "to_ambient": g.to_ambient,
    "to_poincare": g.to_poincare,
    "from_poincare": g.from_poincare,
    "tangent.dist0": t.dist0,
    "tangent.half_aperture": t.half_aperture,
    "arcosh1p": lambda x, c: g.arcosh1p(x * c),
    "arcosh": lambda x, c: g.arcosh(1 + x.square() * c),
}
BINARY: dict[str, Callable[..., Tensor]] = {
    "dist": g.dist,
    "exterior_angle": g.exterior_angle,
    "logmap": g.logmap,
    "expmap": g.expmap,
    "midpoint": g.midpoint,
    "geodesic": lambda x, y, c: g.geodesic(x, y, 0.3, c),
    "parallel_transport": lambda x, y, c: g.parallel_transport(x, y, y - x / 2, c),
    "parallel_transport0": g.parallel_transport0,
    "parallel_transport0back": g.parallel_transport0back,
    "inner": lambda x, u, c: g.inner(x, u, u.flip(-1), c),
    "tangent.dist": t.dist,
    "tangent.exterior_angle": t.exterior_angle,
}
PAIRWISE: dict[str, Callable[..., Tensor]] = {
    "cdist": g.cdist,
    "tangent.cdist": t.cdist,
    "tangent.cdist.diagonal": lambda x, y, c: t.cdist(x, y, c, fix_near="diagonal"),
    "centroid": lambda x, y, c: g.centroid(x + 0 * y, c),
}
CASES = [(name, f, 1) for name, f in UNARY.items()]
CASES += [(name, f, 2) for name, f in (BINARY | PAIRWISE).items()]
every = pytest.mark.parametrize(("function", "arity"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
rowwise = pytest.mark.parametrize(
    ("function", "arity"),
    [(f, n) for name, f, n in CASES if name not in PAIRWISE],
    ids=[name for name, _, _ in CASES if name not in PAIRWISE],
)


def inputs(arity: int, dtype: torch.dtype = F64, rows: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(rows, 3, dtype=F64, generator=generator).sub(0.3).to(dtype) for _ in range(arity)]


@every
def test_gradients_and_their_gradients(function: Callable[..., Tensor], arity: int) -> None:
    arguments = [x.requires_grad_() for x in inputs(arity)]
    c = torch.tensor(0.7, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (*arguments, c))
    assert torch.autograd.gradgradcheck(function, (*arguments, c))


@rowwise
def test_a_curvature_for_each_row(function: Callable[..., Tensor], arity: int) -> None:
    arguments = inputs(arity)
    c = torch.tensor([0.3, 0.7, 1.0, 1.5], dtype=F64)
    whole = function(*arguments, c) if function not in (UNARY["arcosh"], UNARY["arcosh1p"]) else None
    if whole is not None:
        rows = torch.stack([function(*(a[i] for a in arguments), c[i]) for i in range(4)])
        assert torch.allclose(whole, rows, rtol=1e-14, atol=1e-16)


@rowwise
def test_functions_map(function: Callable[..., Tensor], arity: int) -> None:
    arguments = inputs(arity)

    def one(*a: Tensor) -> Tensor:
        return function(*a, 0.7)

    assert torch.allclose(torch.func.vmap(one)(*arguments), one(*arguments), rtol=1e-14, atol=0)
    every_one = tuple(range(arity))
    slopes = torch.func.vmap(torch.func.grad(lambda *a: one(*a).sum(), argnums=every_one))(*arguments)
    for number in every_one:
        moved = tuple(torch.full_like(a, float(i == number)) for i, a in enumerate(arguments))
        _, forward = torch.func.jvp(one, tuple(arguments), moved)
        along = forward.reshape(4, -1).sum(-1)
        assert torch.allclose(along, slopes[number].sum(-1), rtol=1e-10)
        _, alone = torch.func.jvp(
            lambda x, n=number: one(*arguments[:n], x, *arguments[n + 1 :]),
            (arguments[number],),
            (moved[number],),
        )
        assert torch.allclose(alone, forward, rtol=1e-12)
    c = torch.tensor(0.7, dtype=F64)
    by_c = torch.func.grad(lambda c: function(*arguments, c).sum())(c)
    _, forward = torch.func.jvp(lambda c: function(*arguments, c), (c,), (torch.ones_like(c),))
    assert torch.allclose(forward.sum(), by_c, rtol=1e-9, atol=1e-14)
    hessian = torch.func.hessian(lambda x: one(x, *(a[0] for a in arguments[1:])).sum())(arguments[0][0])
    assert torch.allclose(hessian, hessian.T, rtol=1e-9, atol=1e-12)


@every
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_seen(
    function: Callable[..., Tensor], arity: int, dtype: torch.dtype, bad: float
) -> None:
    """No distance to a broken embedding is 0, and no other row is touched."""
    for place in range(arity):
        arguments = [x.abs() for x in inputs(arity, dtype, rows=5)]
        clean = function(*arguments, 0.7)
        arguments[place][1, 2] = bad
        found = function(*arguments, 0.7)
        if found.shape == (5, 5):
            assert found.select(place, 1).isnan().all()
            assert found.isnan().sum() == 5 or dtype == F64  # which takes one unit for all rows
        elif found.shape[0] == 5:
            assert not found[1].isfinite().all()
            assert torch.equal(found[[0, 2, 3, 4]], clean[[0, 2, 3, 4]])
        else:  # one result of all rows
            assert not found.isfinite().all()


@every
@pytest.mark.parametrize("dtype", [F32, F64])
def test_functions_compile_whole(function: Callable[..., Tensor], arity: int, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    arguments = [x.requires_grad_() for x in (*inputs(arity, dtype), torch.tensor(0.7, dtype=dtype))]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    values = compiled(*arguments), function(*arguments)
    assert torch.allclose(*values, rtol=1e-6)
    got, want = (torch.autograd.grad(v.sum(), arguments, allow_unused=True) for v in values)
    for a, b in zip(got, want, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every
def test_functions_on_a_gpu_are_those_on_the_cpu(function: Callable[..., Tensor], arity: int) -> None:
    here = [x.requires_grad_() for x in (*inputs(arity, F32), torch.tensor(0.7))]
    there = [x.detach().cuda().requires_grad_() for x in here]
    values = function(*here), function(*there)
    assert values[1].is_cuda
    assert torch.allclose(values[0], values[1].cpu(), rtol=1e-6)
    for a, b in zip(
        *(torch.autograd.grad(v.sum(), x) for v, x in zip(values, (here, there), strict=True)), strict=True
    ):
        assert torch.allclose(a, b.cpu(), rtol=1e-5, atol=1e-6)


@every
def test_half_precision_and_autocast_compute_in_float32(function: Callable[..., Tensor], arity: int) -> None:
    arguments = inputs(arity, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = function(*arguments, 0.7)
    if function not in (
        UNARY["arcosh"],
        UNARY["arcosh1p"],
        PAIRWISE["centroid"],
        BINARY["parallel_transport"],
    ):
        assert torch.equal(got, function(*(a.float() for a in arguments), 0.7))
    assert got.dtype == F32


@every
def test_empty_batches_and_strided_rows(function: Callable[..., Tensor], arity: int) -> None:
    arguments = inputs(arity, F32, rows=8)
    strided = [a.t().contiguous().t()[::2] for a in arguments]
    assert not strided[0].is_contiguous()
    assert torch.equal(function(*strided, 0.7), function(*(a.contiguous() for a in strided), 0.7))
    if function is not PAIRWISE["centroid"]:
        assert function(*(a[:0] for a in arguments), 0.7).shape[0] == 0


@rowwise
def test_large_batches_are_tiled_to_the_same_result(function: Callable[..., Tensor], arity: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = [(torch.randn(1100, 256, generator=generator) / 40).requires_grad_() for _ in range(arity)]
    value = function(*a, 0.7)
    got = torch.autograd.grad(value.sum(), a, allow_unused=True)
    few = [x.detach()[:3].requires_grad_() for x in a]
    want = torch.autograd.grad(function(*few, 0.7).sum(), few, allow_unused=True)
    assert torch.allclose(value[:3], function(*few, 0.7), rtol=1e-6)
    for x, y in zip(got, want, strict=True):
        assert (x is None and y is None) or torch.allclose(x[:3], y, rtol=1e-5, atol=1e-7)


def sizes(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Any that the dtype holds, and those at which something happens more often."""
    info = torch.finfo(dtype)
    any_size = st.floats(math.log(info.smallest_normal * info.eps), math.log(info.max)).map(math.exp)
    return st.one_of(st.just(0.0), st.floats(1e-12, 300.0), any_size)


HOW: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda x: x,
    "ray": lambda x: x * 1.5,
    "opposite": lambda x: -x,
    "near": lambda x: x * (1 + 1e-6),
    "across": lambda x: x.roll(1),
}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two vectors of up to 512 numbers, somehow to each other."""
    dtype, dim = draw(st.sampled_from((F32, F64))), draw(st.sampled_from((1, 2, 5, 512)))
    most = torch.finfo(dtype).max
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def vector() -> Tensor:
        direction = 2 * torch.rand(dim, dtype=F64, generator=generator) - 1
        if draw(st.booleans()):
            direction = direction.round()
        return (draw(sizes(dtype)) * direction).clamp(-most, most)

    x, how = vector(), draw(st.sampled_from(("other", *HOW)))
    y = vector() if how == "other" else HOW[how](x)
    return x.to(dtype), y.clamp(-most, most).to(dtype)


def assert_finite(x: Tensor, y: Tensor, c: float) -> None:
    """Values, gradients and gradients of their sum are finite."""
    far = float(x.abs().max()) > torch.finfo(x.dtype).max / 4
    for name, function, arity in CASES:
        # These two are made of x here, and what they are made of may not fit.
        if name.startswith("arcosh") or (name == "parallel_transport" and far):
            continue
        leaves = [v[None].clone().requires_grad_() for v in (x, y)[:arity]]
        curvature = torch.tensor(c, dtype=x.dtype, requires_grad=True)
        value = function(*leaves, curvature)
        assert value.isfinite().all(), name
        slopes = torch.autograd.grad(value.sum(), (*leaves, curvature), create_graph=True, allow_unused=True)
        slopes = tuple(s for s in slopes if s is not None)
        assert all(s.isfinite().all() for s in slopes), name
        graph = [s.sum() for s in slopes if s.requires_grad]
        if graph:
            bends = torch.autograd.grad(sum(graph), (*leaves, curvature), allow_unused=True)  # type: ignore[arg-type]
            assert all(b is None or b.isfinite().all() for b in bends), name


@settings(max_examples=80, deadline=None, derandomize=True)
@given(pairs(), st.sampled_from((1e-3, 0.5, 1e3)))
def test_no_finite_input_gives_nan_or_inf(pair: tuple[Tensor, Tensor], c: float) -> None:
    assert_finite(*pair, c)


@pytest.mark.parametrize(
    ("x", "y", "c"),
    [
        ([3e-68, 5e287], [5e-68, 7e287], 0.5),
        ([2e-206], [-2e-206], 1e-3),
        ([0.0, 2e-245, 0.0], [3e-201, -3e-202, 1e-201], 1e3),
        ([-2.3e-316], [-4.4e-240], 1e3),
        ([-2e-321], [2e-321], 0.5),
        ([4e122, 6e121], [4.00001e122, 6.00001e121], 0.5),
        ([5e262], [0.0], 1e3),
        ([-2e180, -2e180], [2e180, 2e180], 0.5),
        ([3e299, -5e299, 8e299], [3e200, -5e200, 8e200], 1.0),
        ([1.0, 2.0], [1e201, 3e201], 1e3),
        ([1.0456e307], [0.0], 1e-3),
        ([0.0], [1.2566e307], 1e-3),
        ([1e305, 2e305], [1e305, 2.00001e305], 1e-3),
    ],
)
def test_float64_at_its_ends(x: list[float], y: list[float], c: float) -> None:
    """Squares of these over- or underflow, and so do the second derivatives of what is made of them."""
    assert_finite(torch.tensor(x, dtype=F64), torch.tensor(y, dtype=F64), c)


def test_the_angle_is_that_at_infinity_once_the_other_point_is_far() -> None:
    """Beyond it nothing depends on the curvature twice: what is large has to cancel before it is squared."""
    x = torch.tensor([1.0, 0.0], dtype=F64)
    found = []
    for far in (1e3, 1e30, 1e250):
        c = torch.tensor(0.7, dtype=F64, requires_grad=True)
        angle = t.exterior_angle(x, torch.tensor([0.0, far], dtype=F64), c)
        (slope,) = torch.autograd.grad(angle, c, create_graph=True)
        (bend,) = torch.autograd.grad(slope, c)
        found.append((angle.item(), slope.item(), bend.item()))
    assert found[1] == pytest.approx(found[0], rel=1e-12)
    assert found[2] == pytest.approx(found[0], rel=1e-12)


@pytest.mark.parametrize("size", [1e-310, 1e-250, 1e-120, 1e-60])
def test_small_rows_are_flat_space(size: float) -> None:
    """Values and gradients of rows at the lower end are those of Euclidean space."""
    x, y = (size * torch.tensor(v, dtype=F64) for v in ([3.0, 0.0], [0.0, 4.0]))
    x.requires_grad_()
    eps = 64 * max(5e-324 / size, torch.finfo(F64).eps)
    for family in (g, t):
        d = family.dist(x, y, 0.7)
        assert d.item() == pytest.approx(5 * size, rel=eps)
        assert torch.autograd.grad(d, x)[0].tolist() == pytest.approx([0.6, -0.8], rel=eps)
        assert family.cdist(x[None], y[None], 0.7).item() == pytest.approx(5 * size, rel=eps)
        angle = family.exterior_angle(x, y, 0.7).item()
        assert angle == pytest.approx(math.pi - math.atan2(4, 3), rel=eps)
    assert torch.allclose(g.logmap(x, y, 0.7), y - x, rtol=eps, atol=0)
    assert torch.allclose(g.midpoint(x, y, 0.7), (x + y) / 2, rtol=eps, atol=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.sampled_from((1, 2, 17, 512)),
    st.floats(math.log(1e-12), math.log(6.0)),
    st.floats(math.log(1e-3), math.log(1e3)),
)
def test_the_families_agree(seed: int, dim: int, log_r: float, log_c: float) -> None:
    """Tangent vectors, space components, ambient points and the Poincaré ball are the same points."""
    c, generator = math.exp(log_c), torch.Generator().manual_seed(seed)
    v = torch.nn.functional.normalize(torch.randn(2, dim, dtype=F64, generator=generator), dim=-1)
    v = v * math.exp(log_r) / math.sqrt(c) * torch.tensor([[1.0], [0.7]], dtype=F64)
    x, manifold = g.expmap0(v, c), g.Lorentz(torch.tensor(1 / c, dtype=F64))
    p, b = g.to_ambient(x, c), g.to_poincare(x, c)
    want, unit = t.dist(*v, c), 64 * torch.finfo(F64).eps * math.cosh(math.exp(log_r)) ** 2
    for found in (g.dist(*x, c), manifold.dist(*p), g.dist(*g.from_poincare(b, c), c)):
        assert torch.isclose(found, want, rtol=unit, atol=0)
    # The ball's own distance, with |b-a|² and the conformal factors.
    gap, factors = c * (b[0] - b[1]).square().sum(), 1 - c * b.square().sum(-1)
    ball = 2 * torch.asinh(torch.sqrt(gap / factors.prod())) / math.sqrt(c)
    assert torch.isclose(ball, want, rtol=unit, atol=0)
    for found in (g.exterior_angle(*x, c), manifold.exterior_angle(*p)):
        assert torch.isclose(found, t.exterior_angle(*v, c), rtol=0, atol=unit)
    apertures = t.half_aperture(v, c)
    assert torch.allclose(g.half_aperture(x, c), apertures, rtol=unit, atol=0)
    assert torch.allclose(manifold.half_aperture(p), apertures, rtol=unit, atol=0)


def test_models_of_the_same_points_agree() -> None:
    x, y = (torch.randn(50, 6, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    for c in (0.01, 1.0, 30.0):
        assert torch.allclose(g.from_poincare(g.to_poincare(x, c), c), x, rtol=1e-9)
        ball = geoopt.PoincareBall(c=torch.tensor(c, dtype=F64))
        want = ball.dist(g.to_poincare(x, c), g.to_poincare(y, c))
        assert torch.allclose(g.dist(x, y, c), want, rtol=1e-9)


def test_points_between_points() -> None:
    x, y = (torch.randn(50, 6, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    d = g.dist(x, y, 0.7)
    for part in (0.0, 0.25, 1.0):
        z = g.geodesic(x, y, part, 0.7)
        assert torch.allclose(g.dist(x, z, 0.7), part * d, atol=1e-12)
        assert torch.allclose(g.dist(z, y, 0.7), (1 - part) * d, atol=1e-12)
    assert torch.allclose(g.midpoint(x, y, 0.7), g.geodesic(x, y, 0.5, 0.7))
    assert torch.allclose(g.geodesic(x, x, 0.4, 0.7), x, rtol=1e-15)
    weights = torch.tensor([3.0, 1.0], dtype=F64)
    pair = torch.stack([x, y], 1)
    assert torch.allclose(g.centroid(pair, 0.7), g.midpoint(x, y, 0.7))
    one = g.centroid(pair, 0.7, torch.tensor([1.0, 0.0], dtype=F64))
    assert torch.allclose(one, x)
    nearer = g.centroid(pair, 0.7, weights)
    assert (g.dist(nearer, x, 0.7) < g.dist(nearer, y, 0.7)).all()
    far = g.expmap0(torch.tensor([[30.0, 0.0], [30.0, 0.001]], dtype=F64), 1.0)
    assert torch.allclose(g.centroid(far, 1.0), g.midpoint(far[0], far[1], 1.0), rtol=1e-9)


def test_transport_from_the_origin_is_transport() -> None:
    x, u = (torch.randn(20, 4, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    origin = torch.zeros_like(x)
    assert torch.allclose(g.parallel_transport0(x, u, 0.7), g.parallel_transport(origin, x, u, 0.7))
    assert torch.allclose(g.parallel_transport0back(x, u, 0.7), g.parallel_transport(x, origin, u, 0.7))


def test_a_point_past_the_end_of_the_dtype_stays_there() -> None:
    v = torch.tensor([[60.0, 80.0], [6e5, 8e5]], requires_grad=True)
    x = g.expmap0(v, 1.0)
    assert torch.allclose(x[1], torch.tensor([0.6, 0.8]) * torch.finfo(F32).max / 4)
    assert torch.allclose(x[0], x[1])
    assert torch.autograd.grad((x[1] * torch.tensor([0.6, 0.8])).sum(), v)[0].abs().max() < 1e30


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("degree", [2, 3, 4, 6])
def test_a_root_of_the_range_has_a_finite_power(dtype: torch.dtype, degree: int) -> None:
    """1024 / 4 is a whole number, and 2^1024 is beyond float64."""
    power = torch.tensor(range_root(dtype, degree), dtype=dtype) ** degree
    assert power.isfinite()
    assert 1 / power > 0
