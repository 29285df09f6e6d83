"""Which parameters are stepped as one stack: every manifold that geoopt ships, one to seven parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import geoopt
import geoopt.manifolds
import pytest
import torch
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn.optim import RiemannianAdam, RiemannianSGD
from riemann_unlearn.optim.batching import is_uniform

F64 = torch.float64


def siegel(size: int) -> Callable[[torch.Generator], Tensor]:
    """Symmetric complex matrices with a positive imaginary part; within the unit ball after scaling."""

    def draw(generator: torch.Generator) -> Tensor:
        a, b = (torch.randn(size, size, dtype=F64, generator=generator) for _ in range(2))
        return torch.complex((a + a.mT) / 2, b @ b.mT + torch.eye(size, dtype=F64))

    return draw


def bounded(generator: torch.Generator) -> Tensor:
    z = siegel(3)(generator)
    size: Tensor = torch.linalg.matrix_norm(z, 2)
    return z / (2 * size)


def vector(generator: torch.Generator) -> Tensor:
    return torch.randn(4, dtype=F64, generator=generator) / 4


def matrix(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 3, dtype=F64, generator=generator)


Draw = Callable[[torch.Generator], Tensor]
MANIFOLDS: dict[str, tuple[Callable[[], geoopt.Manifold], Draw]] = {
    "BirkhoffPolytope": (geoopt.BirkhoffPolytope, lambda g: matrix(g).abs() + 0.1),
    "BoundedDomain": (geoopt.BoundedDomain, bounded),
    "CanonicalStiefel": (geoopt.CanonicalStiefel, matrix),
    "Euclidean": (lambda: geoopt.Euclidean(ndim=1), vector),
    "EuclideanStiefel": (geoopt.EuclideanStiefel, matrix),
    "EuclideanStiefelExact": (geoopt.EuclideanStiefelExact, matrix),
    "Lorentz": (lambda: geoopt.Lorentz(torch.tensor(1.5, dtype=F64)), vector),
    "PoincareBall": (lambda: geoopt.PoincareBall(torch.tensor(0.8, dtype=F64)), vector),
    "PoincareBallExact": (lambda: geoopt.PoincareBallExact(torch.tensor(0.8, dtype=F64)), vector),
    "ProductManifold": (
        lambda: geoopt.ProductManifold((geoopt.Sphere(), 2), (geoopt.PoincareBall(), 2)),
        vector,
    ),
    "Scaled": (lambda: geoopt.Scaled(geoopt.Sphere(), 2.0), vector),
    "Sphere": (geoopt.Sphere, vector),
    "SphereExact": (geoopt.SphereExact, vector),
    "SphereProjection": (geoopt.SphereProjection, vector),
    "SphereProjectionExact": (geoopt.SphereProjectionExact, vector),
    "Stereographic": (lambda: geoopt.Stereographic(torch.tensor(-0.7, dtype=F64)), vector),
    "StereographicExact": (lambda: geoopt.StereographicExact(torch.tensor(-0.7, dtype=F64)), vector),
    "StereographicProductManifold": (
        lambda: geoopt.StereographicProductManifold((geoopt.PoincareBall(), 2), (geoopt.Stereographic(), 2)),
        vector,
    ),
    "Stiefel": (geoopt.Stiefel, matrix),
    "SymmetricPositiveDefinite": (
        geoopt.SymmetricPositiveDefinite,
        lambda g: matrix(g) @ matrix(g).mT + torch.eye(3, dtype=F64),
    ),
    "UpperHalf": (geoopt.UpperHalf, siegel(3)),
}
ABSTRACT = {"Manifold"}


def test_every_manifold_that_geoopt_ships_is_here() -> None:
    shipped = {
        name
        for home in (geoopt, geoopt.manifolds)
        for name, value in vars(home).items()
        if inspect.isclass(value) and issubclass(value, geoopt.Manifold)
    }
    assert shipped - ABSTRACT == set(MANIFOLDS)


def starts(name: str, count: int) -> tuple[geoopt.Manifold, list[Tensor]]:
    """Single points, and with more than four of them a batch too."""
    make, draw = MANIFOLDS[name]
    manifold, generator = make(), torch.Generator().manual_seed(0)
    points = [manifold.projx(draw(generator)) for _ in range(count)]
    if count > 4:
        points[-1] = torch.stack([manifold.projx(draw(generator)) for _ in range(3)])
    return manifold, points


def run(optimizer: torch.optim.Optimizer, params: list[Tensor], weights: list[Tensor]) -> None:
    for _ in range(4):
        optimizer.zero_grad()
        losses = [
            (p * w).abs().square().sum() + (p * w).real.sum() for p, w in zip(params, weights, strict=True)
        ]
        torch.autograd.backward(torch.stack(losses).sum())
        optimizer.step()


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("name", MANIFOLDS)
def test_any_number_of_parameters_of_any_manifold_goes_geoopts_way(name: str, count: int) -> None:
    manifold, points = starts(name, count)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.rand(p.shape, dtype=F64, generator=generator) for p in points]
    cases: list[tuple[Any, Any, dict[str, Any]]] = [
        (
            RiemannianAdam,
            geoopt.optim.RiemannianAdam,
            {"lr": 1e-2, "amsgrad": count % 2 == 0 and not points[0].is_complex()},
        ),
        (RiemannianSGD, geoopt.optim.RiemannianSGD, {"lr": 1e-2}),
    ]
    for ours, theirs, options in cases:
        pair = []
        for optimizer in (ours, theirs):
            params = [geoopt.ManifoldParameter(p.clone(), manifold) for p in points]
            run(optimizer(params, **options), params, weights)
            pair.append(params)
        for a, b in zip(*pair, strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-9, atol=1e-10)


def test_what_is_not_known_to_be_taken_point_by_point_is_not_stacked() -> None:
    assert not is_uniform(geoopt.BoundedDomain())
    assert not is_uniform(geoopt.BirkhoffPolytope())
    assert not is_uniform(geoopt.Scaled(geoopt.UpperHalf()))
    assert not is_uniform(geoopt.ProductManifold((geoopt.BoundedDomain(), (3, 3)), (geoopt.Sphere(), 2)))
    assert not is_uniform(geoopt.Scaled(geoopt.ProductManifold((geoopt.Sphere(), 2), (geoopt.Sphere(), 3))))
    assert is_uniform(geoopt.Scaled(geoopt.Scaled(ru.Lorentz())))
    assert is_uniform(geoopt.ProductManifold((geoopt.Stiefel(), (3, 3)), (geoopt.Sphere(), 2)))
