r"""The laws of hyperbolic space and of its entailment cones, for any manifold with geoopt's methods.

Hypothesis draws the dimension, the curvature, the dtype and points, as tangent vectors at the origin in units
of the curvature radius. A law holds up to the resolution of the points: rounding the coordinates of a point
moves it by about :math:`u\sinh r`, and :meth:`Laws.resolution` is that with a factor for the handful of
roundings that a law combines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize, pad

CURVATURES = st.one_of(st.sampled_from((1e-3, 1.0, 1e3)), st.floats(1e-3, 1e3))
DTYPES = st.sampled_from((torch.float32, torch.float64))
# The same examples in every run, so that a failure is of the code. No deadline: first calls compile.
laws = settings(max_examples=40, deadline=None, derandomize=True)


class Laws:
    """What the classes of laws share: subclass one of them, name it ``Test…`` and implement :meth:`make`."""

    slack: float = 64.0
    """Roundings that a law may combine."""
    dims: Sequence[int] = (1, 2, 3, 16, 512)
    """Dimensions of the space that are drawn."""
    radii: tuple[float, float] = (1e-12, 6.0)
    """Radii of the points that are drawn, beside the origin itself; cosh² of the largest must be resolved."""
    far: float = 60.0
    """Radius up to which everything must be finite."""

    def make(self, c: float, dtype: torch.dtype) -> Any:
        """The manifold of curvature -c for points of a dtype."""
        raise NotImplementedError

    def lift(self, manifold: Any, v: Tensor, c: float, dtype: torch.dtype) -> Tensor:
        """The point whose logarithm at the origin is v/√c."""
        point: Tensor = manifold.expmap0(pad(v / math.sqrt(c), (1, 0)).to(dtype))
        return point

    def resolution(self, dtype: torch.dtype, *radii: float) -> float:
        """What rounding the coordinates of points there moves them by, in units of the curvature radius."""
        return self.slack * torch.finfo(dtype).eps * sum(map(math.cosh, radii))

    def vectors(self, data: st.DataObject, count: int, most: float | None = None) -> list[Tensor]:
        """Tangent vectors at the origin in units of the curvature radius, shape (D,), float64."""
        dim = data.draw(st.sampled_from(self.dims), label="dimension")
        low, high = self.radii[0], most or self.radii[1]
        # By size and by its logarithm, or little that is short would be drawn. exp of the log of the largest
        # may be rounded to more than it.
        sizes = st.one_of(
            st.just(0.0),
            st.floats(low, high),
            st.floats(math.log(low), math.log(high)).map(lambda log: min(math.exp(log), high)),
        )
        drawn = []
        for number in range(count):
            # A seed, for hypothesis then draws and shrinks one number, not one for each dimension.
            seed = data.draw(st.integers(0, 2**31), label=f"direction {number}")
            direction = torch.randn(dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            drawn.append(data.draw(sizes, label=f"radius {number}") * normalize(direction, dim=0))
        return drawn


class HyperbolicLaws(Laws):
    """The laws of hyperbolic space.

    The manifold has geoopt's methods ``dist``, ``dist0``, ``expmap``, ``expmap0``, ``logmap``, ``transp``,
    ``inner``, ``projx``, ``proju``, ``egrad2rgrad``, ``check_point_on_manifold`` and
    ``check_vector_on_tangent``, and points as geoopt's ``Lorentz`` has them, time first.
    """

    @laws
    @given(st.data(), CURVATURES, DTYPES)
    def test_distance_is_a_metric(self, data: st.DataObject, c: float, dtype: torch.dtype) -> None:
        """It is 0 from a point to itself, positive, symmetric, and keeps the triangle inequality."""
        manifold = self.make(c, dtype)
        x, y, z = (self.lift(manifold, v, c, dtype) for v in self.vectors(data, 3))
        xy, yx, yz, xz = (float(manifold.dist(*pair)) for pair in ((x, y), (y, x), (y, z), (x, z)))
        assert float(manifold.dist(x, x)) == 0.0
        assert xy >= 0
        assert abs(xy - yx) <= 4 * torch.finfo(dtype).eps * xy
        assert xz <= (xy + yz) * (1 + 4 * torch.finfo(dtype).eps)

    @laws
    @given(st.data(), CURVATURES, DTYPES)
    def test_distance_to_the_origin_is_the_length(
        self, data: st.DataObject, c: float, dtype: torch.dtype
    ) -> None:
        """Exp is a radial isometry."""
        manifold = self.make(c, dtype)
        (a,) = self.vectors(data, 1)
        found = float(manifold.dist0(self.lift(manifold, a, c, dtype))) * math.sqrt(c)
        assert math.isclose(found, float(a.norm()), rel_tol=self.slack * torch.finfo(dtype).eps)

    @laws
    @given(st.data(), CURVATURES, DTYPES)
    def test_exp_inverts_log(self, data: st.DataObject, c: float, dtype: torch.dtype) -> None:
        """expmap(x, logmap(x, y)) is y."""
        a, b = self.vectors(data, 2)
        self.exp_inverts_log(a, b, c, dtype)

    def exp_inverts_log(self, a: Tensor, b: Tensor, c: float, dtype: torch.dtype) -> None:
        """The same for points by their vectors at the origin in curvature radii, shape (D,), float64."""
        manifold = self.make(c, dtype)
        x, y = (self.lift(manifold, v, c, dtype) for v in (a, b))
        off = float(manifold.dist(manifold.expmap(x, manifold.logmap(x, y)), y)) * math.sqrt(c)
        # The coordinates of the vector at x are cosh r times its length. Rounding them turns it by as much,
        # which grows as sinh on the way to y, and changes its length by cosh r times as much again.
        stretch, way = math.cosh(float(a.norm())), float(a.norm() + b.norm())
        far = stretch * (way * stretch + math.sinh(way)) + math.cosh(float(b.norm()))
        assert off <= self.slack * torch.finfo(dtype).eps * far

    @laws
    @given(st.data(), CURVATURES, DTYPES)
    def test_transport_keeps_inner_products_and_comes_back(
        self, data: st.DataObject, c: float, dtype: torch.dtype
    ) -> None:
        """Transport is an isometry, and its own way back."""
        manifold = self.make(c, dtype)
        a, b, first, second = self.vectors(data, 4)
        x, y = (self.lift(manifold, v, c, dtype) for v in (a, b))
        u, w = (manifold.proju(x, pad(e, (1, 0)).to(dtype)) for e in (first, second))
        there = [manifold.transp(x, y, one) for one in (u, w)]
        sizes = [
            float(one.double().norm() + moved.double().norm())
            for one, moved in zip((u, w), there, strict=True)
        ]
        unit = self.resolution(dtype, float(a.norm()), float(b.norm()))
        back = manifold.transp(y, x, there[0])
        assert float((back - u).double().norm()) <= unit * sizes[0]
        kept = float(manifold.inner(y, *there)) - float(manifold.inner(x, u, w))
        assert abs(kept) <= unit * sizes[0] * sizes[1]

    @laws
    @given(st.data(), CURVATURES, DTYPES)
    def test_reflections_are_isometries(self, data: st.DataObject, c: float, dtype: torch.dtype) -> None:
        """Reflecting both points in a plane through the origin, of which rotations are made."""
        manifold = self.make(c, dtype)
        a, b, normal = self.vectors(data, 3)
        unit = normalize(normal, dim=0)
        # A normal of length 0 has no direction, nothing is reflected, and the law holds of itself.
        turned = [v - 2 * (v @ unit) * unit for v in (a, b)]
        plain, moved = (
            float(manifold.dist(*(self.lift(manifold, v, c, dtype) for v in pair))) * math.sqrt(c)
            for pair in ((a, b), turned)
        )
        assert abs(plain - moved) <= self.resolution(dtype, float(a.norm()), float(b.norm()))

    @laws
    @given(st.data(), st.floats(-2, 2), CURVATURES, DTYPES)
    def test_boosts_are_isometries(
        self, data: st.DataObject, by: float, c: float, dtype: torch.dtype
    ) -> None:
        """Moving both points along a geodesic through the origin, which with rotations is every isometry."""
        manifold = self.make(c, dtype)
        a, b, along = self.vectors(data, 3)
        unit = normalize(along, dim=0)
        points = [self.lift(manifold, v, c, dtype) for v in (a, b)]
        moved = []
        for p in points:
            # In float64, so that a moved point is rounded once, by its dtype.
            time, part = p[0].double(), p[1:].double() @ unit
            step = (math.cosh(by) - 1) * part + math.sinh(by) * time
            late = math.cosh(by) * time + math.sinh(by) * part
            moved.append(torch.cat([late[None], p[1:].double() + step * unit]).to(dtype))
        # The drawn vector is 0 and gives no direction, which the formula takes for a unit vector.
        if not unit.any():
            moved = points
        # Rounded coordinates are off the sheet. Both pairs are put back on it, by the same map.
        before, after = (
            float(manifold.dist(*map(manifold.projx, pair))) * math.sqrt(c) for pair in (points, moved)
        )
        radii = [float(v.norm()) + abs(by) for v in (a, b)]
        assert abs(before - after) <= self.resolution(dtype, *radii)

    @laws
    @given(st.data(), CURVATURES, DTYPES)
    def test_curvature_is_a_unit_of_length(self, data: st.DataObject, c: float, dtype: torch.dtype) -> None:
        """Distances of curvature -c are those of curvature -1, in units of 1/√c."""
        ours, unit = self.make(c, dtype), self.make(1.0, dtype)
        a, b = self.vectors(data, 2)
        d = float(ours.dist(*(self.lift(ours, v, c, dtype) for v in (a, b)))) * math.sqrt(c)
        want = float(unit.dist(*(self.lift(unit, v, 1.0, dtype) for v in (a, b))))
        assert abs(d - want) <= self.resolution(dtype, float(a.norm()), float(b.norm()))

    @laws
    @given(st.data(), CURVATURES, DTYPES)
    def test_points_and_gradients_are_on_the_manifold(
        self, data: st.DataObject, c: float, dtype: torch.dtype
    ) -> None:
        """What projx makes passes the manifold's own check, and a Riemannian gradient is tangent."""
        manifold = self.make(c, dtype)
        a, e = self.vectors(data, 2)
        # Off the sheet by a hundredth, for projx to have something to mend.
        x = manifold.projx(self.lift(manifold, a, c, dtype) * 1.01)
        assert manifold.check_point_on_manifold(x)
        gradient = pad(e, (1, 0), value=0.5).to(dtype)
        kept = gradient.clone()
        u = manifold.egrad2rgrad(x, gradient)
        assert manifold.check_vector_on_tangent(x, u)
        # geoopt's Lorentz writes into it: the gradient that an optimizer reads next would be another.
        assert torch.equal(gradient, kept)

    @laws
    @given(st.data(), CURVATURES, DTYPES)
    def test_everything_is_finite(self, data: st.DataObject, c: float, dtype: torch.dtype) -> None:
        """Values, gradients and their gradients, coincident points and the origin included."""
        manifold = self.make(c, dtype)
        a, b = self.vectors(data, 2, self.far)
        # Coincident, on one ray, opposite, and one at the origin: where formulas have a 0/0 or cancel.
        pairs = ((a, b), (a, a), (a, 1.1 * a), (a, -a), (a, 0 * a))
        for first, second in pairs:
            x, y = (self.lift(manifold, v, c, dtype).detach().requires_grad_() for v in (first, second))
            value = manifold.dist(x, y) + manifold.logmap(x, y).sum()
            slopes = torch.autograd.grad(value, (x, y), create_graph=True)
            bends = torch.autograd.grad(slopes[0].sum() + slopes[1].sum(), (x, y), allow_unused=True)
            for found in (value, *slopes, *bends):
                assert found is None or bool(found.isfinite().all())


class ConeLaws(Laws):
    """The laws of entailment cones, for a manifold that has ``half_aperture`` and ``exterior_angle`` too."""

    def ray(
        self, data: st.DataObject, further: float, c: float, dtype: torch.dtype
    ) -> tuple[Any, Tensor, Tensor, float]:
        """The manifold, a point, one further out on its ray, and the resolution of angles between them."""
        manifold = self.make(c, dtype)
        (a,) = self.vectors(data, 1, 3.0)
        r = float(a.norm())
        x, y = (self.lift(manifold, v, c, dtype) for v in (a, further * a))
        if r == 0:
            return manifold, x, y, 0.0
        # Turning y by a rounding moves it by that times sinh r, seen from x at the distance of both.
        seen = math.sinh(further * r) / math.sinh((further - 1) * r)
        return manifold, x, y, self.slack * torch.finfo(dtype).eps * seen

    @laws
    @given(st.data(), st.floats(1.5, 2.0), CURVATURES, DTYPES)
    def test_cones_narrow_outward(
        self, data: st.DataObject, further: float, c: float, dtype: torch.dtype
    ) -> None:
        """The aperture falls with the radius, from a half-space at the origin."""
        manifold, x, y, _ = self.ray(data, further, c, dtype)
        near, far = float(manifold.half_aperture(x)), float(manifold.half_aperture(y))
        assert 0 < far <= near <= math.pi / 2 * (1 + torch.finfo(dtype).eps)
        if float(manifold.dist0(y)) * math.sqrt(c) > 0.25:  # sinh of it is over 2K
            assert far < near

    @laws
    @given(st.data(), st.floats(1.5, 2.0), CURVATURES, DTYPES)
    def test_the_outward_ray_is_the_axis_of_the_cone(
        self, data: st.DataObject, further: float, c: float, dtype: torch.dtype
    ) -> None:
        """The exterior angle is 0 on the ray, inside the cone, and π toward the origin."""
        manifold, x, y, unit = self.ray(data, further, c, dtype)
        outward = float(manifold.exterior_angle(x, y))
        assert outward <= unit
        assert outward <= float(manifold.half_aperture(x))
        if unit > 0:  # there is an angle
            assert float(manifold.exterior_angle(y, x)) >= math.pi - unit
            origin = self.lift(manifold, torch.zeros_like(x[1:].double()), c, dtype)
            assert float(manifold.exterior_angle(x, origin)) >= math.pi - unit
