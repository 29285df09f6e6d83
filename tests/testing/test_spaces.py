"""Our spaces keep the laws of spaces, a third party's that is one method does, and a wrong one does not."""

from __future__ import annotations

from dataclasses import dataclass

import geoopt
import pytest
import torch
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn.geometry import expmap0, to_ambient
from riemann_unlearn.spaces import Cosine, LorentzTangents, OnManifold, Sigmoid, Space
from riemann_unlearn.testing import SpaceLaws


class TestCosine(SpaceLaws):
    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return Cosine(torch.tensor(5.0, dtype=dtype, device=device, requires_grad=True))


class TestSigmoid(SpaceLaws):
    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        scale, bias = torch.tensor([5.0, -3.0], dtype=dtype, device=device)
        return Sigmoid(scale.requires_grad_(), bias=bias)


class TestLorentzTangents(SpaceLaws):
    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        scale, c = torch.tensor([5.0, 0.7], dtype=dtype, device=device)
        return LorentzTangents(scale, c=c.requires_grad_(), min_radius=0.2)

    def degenerate(self, dim: int) -> list[tuple[Tensor, Tensor]]:
        x = self.features(9, dim)
        return [*super().degenerate(dim), (0 * x, 0 * x), (0 * x, x), (60 * x, 60 * x), (x, 2 * x), (x, -x)]


class TestLorentz(SpaceLaws):
    tolerance = 1e-3  # a point at radius 6 has lost 1e-4 of its distances
    dims = (2, 4)

    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        manifold = ru.Lorentz(torch.tensor(1 / 0.7, dtype=dtype)).to(device)
        return OnManifold(5.0, manifold=manifold, min_radius=0.2)

    def features(self, count: int, dim: int, seed: int = 0) -> Tensor:
        return to_ambient(expmap0(super().features(count, dim, seed), 0.7), 0.7)


class TestBall(SpaceLaws):
    dims = (2, 4)

    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return OnManifold(5.0, manifold=geoopt.PoincareBall(c=0.7).to(device, dtype))

    def features(self, count: int, dim: int, seed: int = 0) -> Tensor:
        return geoopt.PoincareBall(c=0.7).double().expmap0(super().features(count, dim, seed) / 2)


class TestScaledStereographic(TestBall):
    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        manifold = geoopt.Scaled(geoopt.Stereographic(k=-0.7, learnable=True), 2.0, learnable=True)
        return OnManifold(5.0, manifold=manifold.to(device, dtype))


class TestEuclidean(SpaceLaws):
    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return OnManifold(5.0, manifold=geoopt.Euclidean())


class TestSphere(SpaceLaws):
    tolerance = 2e-3  # geoopt's arc cosine, in the features' own dtype

    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return OnManifold(5.0, manifold=geoopt.Sphere())

    def features(self, count: int, dim: int, seed: int = 0) -> Tensor:
        return geoopt.Sphere().projx(super().features(count, dim, seed))


class TestProduct(SpaceLaws):
    dims = (4,)
    tolerance = 2e-3

    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        manifold = geoopt.ProductManifold((geoopt.PoincareBall(c=0.7), 2), (geoopt.Euclidean(ndim=1), 2))
        return OnManifold(5.0, manifold=manifold.to(device, dtype))

    def features(self, count: int, dim: int, seed: int = 0) -> Tensor:
        return super().features(count, dim, seed).clamp(-0.7, 0.7)

    test_it_compiles_into_one_graph = None  # geoopt's own code does not


class TestMatrices(SpaceLaws):
    """Points of two axes."""

    dims = (2,)
    tolerance = 2e-3

    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return OnManifold(5.0, manifold=geoopt.SymmetricPositiveDefinite())

    def features(self, count: int, dim: int, seed: int = 0) -> Tensor:
        x = torch.randn(count, dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return x @ x.mT + torch.eye(dim).double()

    test_it_compiles_into_one_graph = None  # geoopt decomposes matrices
    test_degenerate_features_have_finite_gradients = None


@dataclass(frozen=True, eq=False)
class Manhattan(Space):
    """One method."""

    name = "manhattan"

    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        return -torch.cdist(a, b, p=1)


class TestOneMethod(SpaceLaws):
    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return Manhattan(5.0)


@dataclass(frozen=True, eq=False)
class Upside(Manhattan):
    """Distance for similarity."""

    name = "upside"

    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        return -super().pairwise(a, b)


class Wrong(SpaceLaws):
    def make(self, dtype: torch.dtype, device: str = "cpu") -> Space:
        return Upside(5.0)


def test_a_law_can_fail() -> None:
    with pytest.raises(AssertionError):
        Wrong().test_a_feature_is_as_similar_to_itself_as_to_anything()
    with pytest.raises(NotImplementedError):
        SpaceLaws().make(torch.float32)
