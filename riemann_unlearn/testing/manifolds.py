r"""The laws of hyperbolic space, for any manifold with geoopt's methods.

Points and vectors are drawn by hypothesis as tangent vectors at the origin, in units of the curvature radius,
Points and vectors are drawn by hypothesis as tangent vectors at the origin, in units of 1/√c,
of a point moves it by about :math:`u\sinh r`, and :meth:`HyperbolicLaws.resolution` is that with a factor for
the handful of roundings that a law combines.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

_DIM = 4

CURVATURES = st.sampled_from((1e-3, 0.3, 1.0, 7.0, 1e3))
DTYPES = st.sampled_from((torch.float32, torch.float64))
RADII = st.one_of(st.just(0.0), st.floats(1e-12, 1e-3), st.floats(1e-3, 1.0), st.floats(1.0, 6.0))
DIRECTIONS = st.lists(st.floats(-1, 1), min_size=_DIM, max_size=_DIM)
laws = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def vectors(draw: st.DrawFn, radii: st.SearchStrategy[float] = RADII) -> Tensor:
    """Tangent vectors at the origin in units of the curvature radius, shape (4,), float64."""
    direction = torch.tensor(draw(DIRECTIONS), dtype=torch.float64)
    size = direction.norm()
    return draw(radii) * direction / size if size > 1e-6 else torch.zeros(_DIM, dtype=torch.float64)


class HyperbolicLaws:
    """Subclass, name it ``Test…`` and implement :meth:`make`.

    The manifold has geoopt's methods ``dist``, ``dist0``, ``expmap``, ``expmap0``, ``logmap``, ``transp``,
    ``inner``, ``projx``, ``proju``, ``egrad2rgrad``, and points as geoopt's ``Lorentz`` has them, time first.
    """

    slack: float = 64.0
    """Roundings that a law may combine."""

    def make(self, c: float, dtype: torch.dtype) -> Any:
        """The manifold of curvature -c for points of a dtype."""
        raise NotImplementedError

    def lift(self, manifold: Any, v: Tensor, c: float, dtype: torch.dtype) -> Tensor:
        """The point whose logarithm at the origin is v/√c."""
        point: Tensor = manifold.expmap0(torch.nn.functional.pad(v / math.sqrt(c), (1, 0)).to(dtype))
        return point

    def resolution(self, dtype: torch.dtype, *vs: Tensor) -> float:
        """What rounding the coordinates of these points moves them by, in units of the curvature radius."""
        return self.slack * torch.finfo(dtype).eps * sum(math.cosh(float(v.norm())) for v in vs)

    @laws
    @given(vectors(), vectors(), vectors(), CURVATURES, DTYPES)
    def test_distance_is_a_metric(
        self, a: Tensor, b: Tensor, e: Tensor, c: float, dtype: torch.dtype
    ) -> None:
        """It is 0 from a point to itself, positive, symmetric, and keeps the triangle inequality."""
        manifold = self.make(c, dtype)
        x, y, z = (self.lift(manifold, v, c, dtype) for v in (a, b, e))
        xy, yx, yz, xz = (float(manifold.dist(*pair)) for pair in ((x, y), (y, x), (y, z), (x, z)))
        assert float(manifold.dist(x, x)) == 0.0
        assert xy >= 0
        assert abs(xy - yx) <= 4 * torch.finfo(dtype).eps * xy
        assert xz <= (xy + yz) * (1 + 4 * torch.finfo(dtype).eps)

    @laws
    @given(vectors(), CURVATURES, DTYPES)
    def test_distance_to_the_origin_is_the_length(self, a: Tensor, c: float, dtype: torch.dtype) -> None:
        """Exp is a radial isometry."""
        manifold = self.make(c, dtype)
        found = float(manifold.dist0(self.lift(manifold, a, c, dtype))) * math.sqrt(c)
        assert math.isclose(found, float(a.norm()), rel_tol=self.slack * torch.finfo(dtype).eps)

    @laws
    @given(vectors(), vectors(), CURVATURES, DTYPES)
    def test_exp_inverts_log(self, a: Tensor, b: Tensor, c: float, dtype: torch.dtype) -> None:
        """expmap(x, logmap(x, y)) is y, and the logarithm is as long as the distance."""
        manifold = self.make(c, dtype)
        x, y = (self.lift(manifold, v, c, dtype) for v in (a, b))
        u = manifold.logmap(x, y)
        off = float(manifold.dist(manifold.expmap(x, u), y)) * math.sqrt(c)
        far = math.exp(float(a.norm() + b.norm()))  # what an error of u at x becomes at y
        assert off <= self.slack * torch.finfo(dtype).eps * far

    @laws
    @given(vectors(), vectors(), vectors(), CURVATURES, DTYPES)
    def test_transport_keeps_lengths_and_comes_back(
        self, a: Tensor, b: Tensor, e: Tensor, c: float, dtype: torch.dtype
    ) -> None:
        """Transport is an isometry, and its own way back."""
        manifold = self.make(c, dtype)
        x, y = (self.lift(manifold, v, c, dtype) for v in (a, b))
        u = manifold.proju(x, torch.nn.functional.pad(e, (1, 0)).to(dtype))
        there = manifold.transp(x, y, u)
        back = manifold.transp(y, x, there)
        size = float(u.double().norm() + there.double().norm()) + 1e-30
        assert float((back - u).double().norm()) <= self.resolution(dtype, a, b) * size

    @laws
    @given(vectors(), vectors(), st.floats(-3, 3), CURVATURES, DTYPES)
    def test_rotations_are_isometries(
        self, a: Tensor, b: Tensor, angle: float, c: float, dtype: torch.dtype
    ) -> None:
        """Turning both points by the same angle changes no distance."""
        manifold = self.make(c, dtype)
        turn = torch.eye(_DIM, dtype=torch.float64)
        turn[:2, :2] = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
        )
        plain, turned = (
            float(manifold.dist(*(self.lift(manifold, t @ v, c, dtype) for v in (a, b)))) * math.sqrt(c)
            for t in (torch.eye(_DIM, dtype=torch.float64), turn)
        )
        assert abs(plain - turned) <= self.resolution(dtype, a, b)

    @laws
    @given(vectors(), vectors(), CURVATURES, DTYPES)
    def test_curvature_is_a_unit_of_length(self, a: Tensor, b: Tensor, c: float, dtype: torch.dtype) -> None:
        """Distances of curvature -c are those of curvature -1, in units of 1/√c."""
        ours, unit = self.make(c, dtype), self.make(1.0, dtype)
        d = float(ours.dist(*(self.lift(ours, v, c, dtype) for v in (a, b)))) * math.sqrt(c)
        want = float(unit.dist(*(self.lift(unit, v, 1.0, dtype) for v in (a, b))))
        assert abs(d - want) <= self.resolution(dtype, a, b)

    @laws
    @given(vectors(), vectors(), CURVATURES, DTYPES)
    def test_points_and_gradients_are_on_the_manifold(
        self, a: Tensor, e: Tensor, c: float, dtype: torch.dtype
    ) -> None:
        """What projx makes passes the manifold's own check, and a Riemannian gradient is tangent."""
        manifold = self.make(c, dtype)
        x = manifold.projx(self.lift(manifold, a, c, dtype) * 1.01)
        assert manifold.check_point_on_manifold(x)
        gradient = torch.nn.functional.pad(e, (1, 0), value=0.5).to(dtype)
        kept = gradient.clone()
        u = manifold.egrad2rgrad(x, gradient)
        assert manifold.check_vector_on_tangent(x, u)
        assert torch.equal(gradient, kept)

    @laws
    @given(vectors(), vectors(), CURVATURES, DTYPES)
    def test_everything_is_finite(self, a: Tensor, b: Tensor, c: float, dtype: torch.dtype) -> None:
        """Values, gradients and their gradients, coincident points and the origin included."""
        manifold = self.make(c, dtype)
        pairs = ((a, b), (a, a), (a, 2 * a), (a, -a), (a, 0 * a))
        for first, second in pairs:
            x, y = (self.lift(manifold, v, c, dtype).detach().requires_grad_() for v in (first, second))
            value = manifold.dist(x, y) + manifold.logmap(x, y).sum()
            slopes = torch.autograd.grad(value, (x, y), create_graph=True)
            bends = torch.autograd.grad(slopes[0].sum() + slopes[1].sum(), (x, y), allow_unused=True)
            for found in (value, *slopes, *bends):
                assert found is None or bool(found.isfinite().all())
