"""Points on geoopt's manifolds: their own distances, and the cones of those that are hyperbolic."""

from __future__ import annotations

import math

import geoopt
import mpmath
import pytest
import torch
from torch import Tensor

from riemann_unlearn.geometry import expmap0, to_ambient
from riemann_unlearn.spaces import LorentzTangents, OnManifold
from tests.losses import reference


def vectors(seed: int = 0, count: int = 6, dim: int = 4) -> Tensor:
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MATRICES = {"symmetric": geoopt.SymmetricPositiveDefinite, "half-space": geoopt.UpperHalf,
            "domain": geoopt.BoundedDomain}  # fmt: skip
VECTORS = {
    "euclidean": lambda: geoopt.Euclidean(ndim=1),
    "sphere": geoopt.Sphere,
    "exact sphere": geoopt.SphereExact,
    "projected sphere": lambda: geoopt.SphereProjection(k=0.5),
    "positive stereographic": lambda: geoopt.Stereographic(k=0.5),
    "flat stereographic": lambda: geoopt.Stereographic(k=0.0),
    "torus": lambda: geoopt.ProductManifold((geoopt.Sphere(), 2), (geoopt.Sphere(), 2)),
    "mixed": lambda: geoopt.ProductManifold((geoopt.PoincareBall(), 2), (geoopt.Euclidean(ndim=1), 2)),
    "stereographic product": lambda: geoopt.StereographicProductManifold(
        (geoopt.PoincareBall(), 2), (geoopt.SphereProjection(), 2)
    ),
    "scaled sphere": lambda: geoopt.Scaled(geoopt.Sphere(), 2.0),
}


@pytest.mark.parametrize("name", [*VECTORS, *MATRICES])
def test_a_manifold_without_cones_has_its_own_distance(name: str) -> None:
    torch.manual_seed(0)
    manifold = {**VECTORS, **MATRICES}[name]().double()
    shape = (5, 3, 3) if name in MATRICES else (5, 4)
    dtype = torch.complex128 if name in ("half-space", "domain") else torch.float64
    x, y = (manifold.random(*shape, dtype=dtype) for _ in range(2))
    space = OnManifold(manifold=manifold)
    space.check("points", x)
    assert not space.has_cones
    assert torch.allclose(space.matched(x, y), -manifold.dist(x, y))
    for a in range(5):
        for b in range(5):
            assert torch.isclose(space.pairwise(x, y)[a, b], -manifold.dist(x[a : a + 1], y[b : b + 1])[0])
    means = space.mean(x, torch.tensor([0, 0, 1, 1, 1]), 2)
    assert manifold.check_point_on_manifold(means)


def test_euclidean_without_axes_is_measured_as_a_whole() -> None:
    """``geoopt.Euclidean()`` gives a distance for each coordinate, which no loss could take."""
    x, y = vectors(1), vectors(2)
    for manifold in (geoopt.Euclidean(), geoopt.Scaled(geoopt.Euclidean(), 3.0)):
        scale = 3.0 if isinstance(manifold, geoopt.Scaled) else 1.0
        space = OnManifold(manifold=manifold)
        assert torch.allclose(space.pairwise(x, y), -scale * torch.cdist(x, y))
        assert torch.allclose(space.matched(x, y), -scale * (x - y).norm(dim=-1))
        assert torch.equal(space.matched(x, x), torch.zeros(6).double())


def lorentz(v: Tensor, c: float) -> Tensor:
    return to_ambient(expmap0(v, c), c)


def ball(v: Tensor, c: float) -> Tensor:
    # The ball's metric at the centre is four times the Euclidean one.
    return geoopt.PoincareBall(c=c).double().expmap0(v / 2)


HYPERBOLIC = {
    "Lorentz": (lambda c: geoopt.Lorentz(k=1 / c), lorentz),
    "PoincareBall": (lambda c: geoopt.PoincareBall(c=c), ball),
    "PoincareBallExact": (lambda c: geoopt.PoincareBallExact(c=c), ball),
    "Stereographic": (lambda c: geoopt.Stereographic(k=-c), ball),
}


@pytest.mark.parametrize("name", HYPERBOLIC)
@pytest.mark.parametrize("c", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("scale", [None, 0.5, 3.0])
def test_a_hyperbolic_one_is_taken_to_tangent_vectors(name: str, c: float, scale: float | None) -> None:
    """Distances s times longer are those of a curvature s² times smaller."""
    make, lift = HYPERBOLIC[name]
    manifold = make(c).double()
    v, w = 0.7 * vectors(1), 0.7 * vectors(2)
    x, y = lift(v, c), lift(w, c)
    size, curvature = scale or 1.0, c / (scale or 1.0) ** 2
    space = OnManifold(manifold=manifold if scale is None else geoopt.Scaled(manifold, scale))
    assert space.has_cones
    tangents, found = space.tangents(x)
    assert torch.allclose(tangents, size * v, rtol=1e-6)
    assert torch.isclose(torch.as_tensor(found).double(), torch.tensor(curvature).double(), rtol=1e-6)
    assert torch.allclose(space.pairwise(x, y), -size * manifold.dist(x[:, None], y[None]), rtol=1e-5)
    assert torch.allclose(space.radius(x), math.sqrt(c) * v.norm(dim=-1), rtol=1e-6)
    # A mean of points is the point of the mean of their tangent vectors.
    own = torch.tensor([0, 0, 0, 1, 1, 1])
    middle = torch.stack([v[:3].mean(0), v[3:].mean(0)])
    assert torch.allclose(space.mean(x, own, 2), lift(middle, c), rtol=1e-5)
    assert torch.equal(space.nearest(x, y, 2), manifold.dist(x[:, None], y[None]).topk(2, largest=False)[1])
    assert torch.equal(space.ranks(x, x, torch.arange(6)), torch.zeros(6, dtype=torch.int64))


@pytest.mark.parametrize("name", HYPERBOLIC)
@pytest.mark.parametrize("scale", [None, 2.0])
def test_cones_are_those_of_the_lorentz_model(name: str, scale: float | None) -> None:
    """By MERU's formulas in 50 digits; a cone does not change with the unit of length."""
    c, k = 0.7, 0.2
    make, lift = HYPERBOLIC[name]
    manifold = make(c).double()
    space = OnManifold(manifold=manifold if scale is None else geoopt.Scaled(manifold, scale), min_radius=k)
    broad, narrow = 0.6 * vectors(1), vectors(2)
    cones = space.cones(lift(broad, c), lift(narrow, c))
    for row in range(6):
        want = outside(broad[row].tolist(), narrow[row].tolist(), c, k)
        assert cones.outside[row].item() == pytest.approx(want, abs=1e-5)
        plain = reference.outside(broad[row].tolist(), narrow[row].tolist(), c, k)
        assert want == pytest.approx(plain, abs=1e-9)


def outside(broad: list[float], narrow: list[float], c: float, k: float) -> float:
    """Exterior angle less half aperture on the hyperboloid x_t² = 1/c + |x|², in 50 digits."""
    with mpmath.workdps(50):
        root = mpmath.sqrt(c)

        def point(v: list[float]) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
            r = root * mpmath.sqrt(sum(mpmath.mpf(x) ** 2 for x in v))
            space = [mpmath.mpf(x) * mpmath.sinh(r) / r for x in v]
            return mpmath.sqrt(1 / mpmath.mpf(c) + sum(x**2 for x in space)), space

        (t1, x1), (t2, x2) = point(broad), point(narrow)
        product = c * (sum(a * b for a, b in zip(x1, x2, strict=True)) - t1 * t2)
        n = mpmath.sqrt(sum(x**2 for x in x1))
        angle = mpmath.acos((t2 + t1 * product) / (n * mpmath.sqrt(product**2 - 1)))
        return float(angle - mpmath.asin(min(mpmath.mpf(1), 2 * k / (root * n))))


def test_gradients_reach_a_learnable_curvature_and_a_learnable_scale() -> None:
    manifold = geoopt.Scaled(geoopt.Stereographic(k=-0.7, learnable=True), 2.0, learnable=True)
    space = OnManifold(manifold=manifold)
    x, y = (0.1 * vectors(seed).float() for seed in (1, 2))
    value = space.statistics(x, y).rows.sum() + space.cones(x, y).outside.sum()
    assert all(g.abs() > 0 for g in torch.autograd.grad(value, list(manifold.parameters())))
    detached = space.detached()
    assert not detached.statistics(x, y).rows.requires_grad
    assert all(parameter.requires_grad for parameter in manifold.parameters())


def test_the_rim_of_the_ball_is_the_last_point_inside() -> None:
    c = 0.7
    space = OnManifold(manifold=geoopt.PoincareBall(c=c).double())
    for r in (1e-8, 1.0, 12.0):
        v = torch.nn.functional.normalize(vectors(), dim=-1) * r
        n = v.norm(dim=-1, keepdim=True) * c**0.5
        lifted, _ = space.tangents(v * torch.tanh(n / 2) / n)
        assert torch.allclose(lifted, v, rtol=1e-5)
    edge = torch.tensor([[0.0, 0.0], [1 / c**0.5, 0.0], [0.0, -2.0]], requires_grad=True)
    lifted, _ = space.tangents(edge)
    assert lifted.isfinite().all()
    assert torch.autograd.grad(lifted.sum(), edge)[0].isfinite().all()


def test_statistics_are_those_of_the_tangent_vectors() -> None:
    v, w, c = vectors(1), vectors(2), 0.7
    forget, ids = torch.arange(6) < 2, torch.tensor([0, 1, 2, 2, 3, 4])
    want = LorentzTangents(5.0, c=c).statistics(v, w, forget=forget, caption_ids=ids)
    space = OnManifold(5.0, manifold=geoopt.Lorentz(k=1 / c).double())
    got = space.statistics(lorentz(v, c), lorentz(w, c), forget=forget, caption_ids=ids)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6)


def test_what_is_no_batch_of_points_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a geoopt.Manifold, got 'Sphere'"):
        OnManifold(manifold="Sphere")
    with pytest.raises(TypeError, match=r"must be a geoopt.Manifold, got None"):
        OnManifold()
    with pytest.raises(ValueError, match="no distance on CanonicalStiefel; use a manifold with a dist"):
        OnManifold(manifold=geoopt.Stiefel()).matched(torch.eye(3)[None], torch.eye(3)[None])
    matrices = OnManifold(manifold=geoopt.SymmetricPositiveDefinite())
    with pytest.raises(ValueError, match=r"points must have shape \(B, n, m\), .*Definite, got \(4, 9\)"):
        matrices.check("points", torch.ones(4, 9))
    with pytest.raises(ValueError, match=r"points must have shape \(B, D\), .*Sphere, got \(9,\)"):
        OnManifold(manifold=geoopt.Sphere()).check("points", torch.ones(9))
    with pytest.raises(TypeError, match="points must be floating point"):
        matrices.check("points", torch.ones(4, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="Sphere has no entailment cones"):
        OnManifold(manifold=geoopt.Sphere()).tangents(vectors())
