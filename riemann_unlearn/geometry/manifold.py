"""geoopt's Lorentz manifold, computed so that it holds its digits.

The interface is geoopt's: points and tangent vectors are ambient, time first, and ``k`` is the inverse of
the curvature magnitude. Every method here takes the space components and computes the time component of
its result from them, because that is where a stored point has its digits.
"""

from __future__ import annotations

from typing import Any

import geoopt
import torch
from torch import Tensor

from riemann_unlearn.geometry import maps, space
from riemann_unlearn.geometry.pairwise import FixNear
from riemann_unlearn.geometry.precision import (
    dot,
    length,
    result_dtype,
    sqrt_c,
    wide_length,
    within,
    working,
)
from riemann_unlearn.geometry.space import time_component


class Lorentz(geoopt.Lorentz):  # type: ignore[misc]
    r"""Lorentz model of curvature -1/k, a drop-in for ``geoopt.Lorentz``.

    Parameters
    ----------
    k : float or Tensor
        :math:`\langle x, x\rangle = -k`: the inverse of the curvature magnitude, k > 0.
    learnable : bool
        Whether ``k`` takes gradients.

    Raises
    ------
    ValueError
        When ``k`` is not positive; also in a method, when an optimizer has led a learnable ``k`` there.

    Notes
    -----
    What differs from geoopt 0.5.1: distances, maps and transports are accurate to the resolution of the
    points; ``dist(x, x)`` is 0 with gradient 0; ``egrad2rgrad`` leaves the gradient it is given alone; the
    check of a point is relative to its size, so that every point ``projx`` makes passes; ``norm`` has no
    floor; ``random_normal`` honours ``std``. Points with r = d/√k above about 8 do not fit float32
    coordinates (see :mod:`riemann_unlearn.geometry.space`).

    Examples
    --------
    >>> import torch
    >>> manifold = Lorentz(k=2.0)
    >>> x = manifold.expmap0(torch.tensor([0.0, 3.0, 4.0]))
    >>> manifold.dist0(x), manifold.dist(x, x)
    (tensor(5.), tensor(0.))
    """

    reversible = True  # retr is the exponential map, and transport goes along its geodesic

    def __init__(self, k: float | Tensor = 1.0, learnable: bool = False) -> None:
        # A tensor on the meta device has no values to look at.
        if not (k.is_meta or bool((k > 0).all()) if isinstance(k, Tensor) else k > 0):
            raise ValueError(f"k must be positive (the curvature is -1/k), got {k}")
        super().__init__(k, learnable)

    @property
    def c(self) -> Tensor:
        """Curvature magnitude 1/k."""
        c: Tensor = 1 / self.k
        return c

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False, dim: int = -1) -> Tensor:
        """Geodesic distance."""
        return _reduced(space.dist(_space(x, dim), _space(y, dim), self._wide_c(x)), keepdim, dim)

    def dist0(self, x: Tensor, *, dim: int = -1, keepdim: bool = False) -> Tensor:
        """Geodesic distance to the origin."""
        return _reduced(space.dist0(_space(x, dim), self._wide_c(x)), keepdim, dim)

    def cdist(self, x: Tensor, y: Tensor, *, fix_near: FixNear = "none") -> Tensor:
        """Geodesic distances (..., N, M) of rows (..., N, D+1) and (..., M, D+1).

        For ``fix_near`` see :func:`riemann_unlearn.geometry.tangent.cdist`.
        """
        return space.cdist(_space(x, -1), _space(y, -1), self._wide_c(x), fix_near=fix_near)

    def half_aperture(self, x: Tensor, *, min_radius: float = 0.1, dim: int = -1) -> Tensor:
        """Half aperture of the entailment cone at x, in radians."""
        return space.half_aperture(_space(x, dim), self._wide_c(x), min_radius)

    def exterior_angle(self, x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
        """Angle at x between the outward ray and the geodesic to y, in radians."""
        return space.exterior_angle(_space(x, dim), _space(y, dim), self._wide_c(x))

    def inner(
        self,
        x: Tensor | None,
        u: Tensor,
        v: Tensor | None = None,
        *,
        keepdim: bool = False,
        dim: int = -1,
    ) -> Tensor:
        """Minkowski inner product of ambient vectors.

        As in geoopt, ``x`` may be None. Given it, vectors that are tangent at x to rounding are taken by
        their space components, without the cancellation that their time components bring.
        """
        product = self._product(x, u, u if v is None else v, dim)
        return _reduced(within(product, result_dtype(u)), keepdim, dim)

    def norm(self, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False, dim: int = -1) -> Tensor:
        """Length of tangent vectors; 0 with gradient 0 for the zero vector.

        ``norm(u)``, as ``geoopt.Lorentz`` has it, and ``norm(x, u)``, as its other manifolds do. Far out only
        the second is accurate: see :meth:`inner`.
        """
        if v is None:
            wide = working(u).movedim(dim, -1)
            size, time = length(wide[..., 1:]), wide[..., 0].abs()
            # A difference of squares without the squares, which may not be finite.
            square = (size - time) * (size + time)
        else:
            square = self._product(u, v, v, dim)
        # Rounding can leave a little less than 0. There, and at 0, where it has no derivative, the root is
        # taken of 1.
        some = ~(square <= 0)  # NaN too, which then is seen
        root = torch.where(some, torch.sqrt(torch.where(some, square, 1.0)), 0.0)
        return _reduced(within(root, result_dtype(u)), keepdim, dim)

    def projx(self, x: Tensor, *, dim: int = -1) -> Tensor:
        """The point with the space components of x."""
        return _ambient(space.to_ambient(_space(x, dim), self._wide_c(x)), dim)

    def proju(self, x: Tensor, v: Tensor, *, dim: int = -1) -> Tensor:
        r"""The tangent part of the ambient vector v at x, :math:`v + \langle x,v\rangle x/k`."""
        moved = self._tangent_part(x, v, dim)
        points = working(_space(x, dim))
        # From the space components of x, for that is the point which the result is tangent at.
        time = time_component(points, sqrt_c(self._wide_c(x), points))
        return _ambient(within(_with_time(points, moved, time), result_dtype(x, v)), dim)

    def egrad2rgrad(self, x: Tensor, u: Tensor, *, dim: int = -1) -> Tensor:
        """The Riemannian gradient of a function with Euclidean gradient u at x."""
        ambient = u.movedim(dim, -1)
        # The Minkowski metric is its own inverse: raising an index turns the sign of the time component. Into
        # a new tensor, for the gradient belongs to the caller.
        raised = torch.cat([-ambient[..., :1], ambient[..., 1:]], -1)
        return self.proju(x, _ambient(raised, dim), dim=dim)

    def expmap(
        self, x: Tensor, u: Tensor, *, norm_tan: bool = True, project: bool = True, dim: int = -1
    ) -> Tensor:
        """Exponential map.

        ``norm_tan`` makes u a tangent vector first. What is one already, to rounding of its coordinates, is
        taken by its space components, which is where its digits are; anything else is projected.
        ``project`` is geoopt's: the result here is on the manifold either way.
        """
        space_u = _space(u, dim)
        if norm_tan:
            space_u = torch.where(self._is_tangent(x, u, dim), space_u, self._tangent_part(x, u, dim))
        c = self._wide_c(x)
        # All in the working dtype, so that the point is rounded once, and before its time component is
        # computed: that then belongs to the space components as they are stored.
        end = maps.expmap(working(_space(x, dim)), space_u, c)
        return _ambient(space.to_ambient(within(end, result_dtype(x, u)), c), dim)

    retr = expmap

    def expmap0(self, u: Tensor, *, project: bool = True, dim: int = -1) -> Tensor:
        """Exponential map at the origin; on the manifold whatever ``project`` says."""
        c = self._wide_c(u)
        return _ambient(space.to_ambient(maps.expmap0(_space(u, dim), c), c), dim)

    def logmap(self, x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
        """Logarithmic map."""
        u = maps.logmap(_space(x, dim), _space(y, dim), self._wide_c(x))
        return self._tangent(x, u, dim)

    def logmap0(self, y: Tensor, *, dim: int = -1) -> Tensor:
        """Logarithmic map at the origin."""
        # A tangent vector at the origin has time component 0.
        u = maps.logmap0(_space(y, dim), self._wide_c(y))
        return _ambient(torch.nn.functional.pad(u, (1, 0)), dim)

    def logmap0back(self, x: Tensor, *, dim: int = -1) -> Tensor:
        """Logarithmic map at x of the origin."""
        points = _space(x, dim)
        u = maps.logmap(points, torch.zeros_like(points), self._wide_c(x))
        return self._tangent(x, u, dim)

    def transp(self, x: Tensor, y: Tensor, v: Tensor, *, dim: int = -1) -> Tensor:
        """Parallel transport of v from x to y."""
        c = self._wide_c(x)
        u = maps.parallel_transport(_space(x, dim), _space(y, dim), _space(v, dim), c)
        return self._tangent(y, u, dim)

    def transp0(self, y: Tensor, u: Tensor, *, dim: int = -1) -> Tensor:
        """Parallel transport of u from the origin to y."""
        moved = maps.parallel_transport0(_space(y, dim), _space(u, dim), self._wide_c(y))
        return self._tangent(y, moved, dim)

    def transp0back(self, x: Tensor, u: Tensor, *, dim: int = -1) -> Tensor:
        """Parallel transport of u from x to the origin."""
        moved = maps.parallel_transport0back(_space(x, dim), _space(u, dim), self._wide_c(x))
        return _ambient(torch.nn.functional.pad(moved, (1, 0)), dim)

    def geodesic_unit(
        self, t: Tensor, x: Tensor, u: Tensor, *, dim: int = -1, project: bool = True
    ) -> Tensor:
        """The point at distance t along the geodesic from x with the unit tangent vector u."""
        return self.expmap(x, t * u, project=project, dim=dim)

    def random_normal(
        self, *size: Any, mean: float = 0, std: float = 1, dtype: Any = None, device: Any = None
    ) -> geoopt.ManifoldTensor:
        """Points whose logarithm at the origin is normal.

        As for geoopt's ``PoincareBall``, ``std`` is the spread of the whole vector: each of its D coordinates
        has standard deviation std/√D and mean mean/√D, and the radius is about ``std`` in any dimension.
        """
        shape = geoopt.utils.size2shape(*size)
        self._assert_check_shape(shape, "x")
        like = {"dtype": dtype or self.k.dtype, "device": device or self.k.device}
        # √D of the space components; the maximum is for a manifold of the origin alone, which has none.
        across = max(shape[-1] - 1, 1) ** 0.5
        u = torch.randn(*shape[:-1], shape[-1] - 1, **like) * (std / across) + mean / across
        points = self.expmap0(torch.nn.functional.pad(u, (1, 0))).detach()
        return geoopt.ManifoldTensor(points, manifold=self)

    def _wide_c(self, x: Tensor) -> Tensor:
        """1/k, at the precision and on the device of the computation, a scalar."""
        if self._parameters.get("k") is not None:
            self._check_positive()
        # Widened before it is inverted, so that 1/k is not rounded to float32. A k of shape (1,) is made a
        # scalar, for it would add an axis to a result of shape ().
        k = working(self.k.to(x.device))
        return 1 / (k.reshape(()) if k.numel() == 1 else k)

    def _check_positive(self) -> None:
        """Refuse a learnable k that an optimizer has led out of range, before every point becomes NaN.

        Only where a look at it costs nothing and is possible: not on a GPU, which would be waited for, not in
        a graph that is being traced, and not where a transform of ``torch.func`` stands in for the parameter.
        """
        k = self.k
        if torch.compiler.is_compiling() or k.device.type != "cpu" or type(k) is not torch.nn.Parameter:
            return
        if not bool((k > 0).all()):
            raise ValueError(
                f"the manifold's k has become {k.tolist()}, and must be positive (the curvature is -1/k). "
                "Keep it in bounds with riemann_unlearn.optim.curvature_group(manifold, lr=...), or clamp it"
            )

    def _tangent(self, x: Tensor, u: Tensor, dim: int) -> Tensor:
        """Ambient tangent vectors at ambient points from their space components."""
        points = working(_space(x, dim))
        wide = working(u)
        # x·u/x_t in the working dtype, of numbers as stored: only the result is rounded.
        whole = _with_time(points, wide, time_component(points, sqrt_c(self._wide_c(x), points)))
        return _ambient(whole.to(u.dtype), dim)

    def _product(self, x: Tensor | None, u: Tensor, v: Tensor, dim: int) -> Tensor:
        """The inner product in the working dtype."""
        product = _minkowski(u, v, dim)
        if x is None:
            return product
        # Only of tangent vectors do space components say all. Other vectors get the plain product.
        tangent = (self._is_tangent(x, u, dim) & self._is_tangent(x, v, dim))[..., 0]
        points, a, b = (working(_space(p, dim)) for p in (x, u, v))
        return torch.where(tangent, maps.inner(points, a, b, self._wide_c(x)), product)

    def _tangent_part(self, x: Tensor, v: Tensor, dim: int) -> Tensor:
        r"""Space components, in the working dtype, of :math:`v + \langle x,v\rangle x/k`.

        It is v + √c x·(√c x·v - √(1+c|x|²)·v_t), which asks for no direction of x. Far out the bracket is a
        difference of large terms, for any way of writing it: what a stored vector has along its point there
        is what rounding has left of it.
        """
        points, b = working(_space(x, dim)), working(v).movedim(dim, -1)
        root = sqrt_c(self._wide_c(x), points)
        radius = root * wide_length(points)
        time = torch.hypot(radius, torch.ones_like(radius))
        offset = root * (root * dot(points, b[..., 1:]) - time * b[..., 0])
        return b[..., 1:] + offset[..., None] * points

    def _is_tangent(self, x: Tensor, u: Tensor, dim: int) -> Tensor:
        """Whether u is a tangent vector at x up to rounding of the coordinates of both, shape (..., 1)."""
        a, b = working(x).movedim(dim, -1), working(u).movedim(dim, -1)
        # Coordinates rounded by ε/2 move the product by ε/2·|a||b| at most (Cauchy-Schwarz), those of both
        # vectors by ε|a||b|; twice that is allowed, for what comes out of a computation.
        error = (dot(a[..., 1:], b[..., 1:]) - a[..., 0] * b[..., 0]).abs()
        sizes = wide_length(a) * wide_length(b)
        return (error <= 2 * torch.finfo(result_dtype(x, u)).eps * sizes)[..., None]

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5, dim: int = -1
    ) -> tuple[bool, str | None]:
        """<x,x> = -k to within rounding of the coordinates, which is relative to x_t²."""
        # A fixed tolerance would refuse far points: rounding the coordinates moves x_t² and |x|² by up to
        # ε x_t² each, and they cancel.
        error = (_minkowski(x, x, dim).unsqueeze(dim) + self.k.to(x)).abs()
        time = x.narrow(dim, 0, 1)
        if bool(((time > 0) & (error <= atol + rtol * time.square())).all()):
            return True, None
        return False, f"<x, x> = {-self.k.item()} does not hold with x_t > 0 to rtol {rtol} of x_t²"

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5, dim: int = -1
    ) -> tuple[bool, str | None]:
        """<x,u> = 0 to within rounding of the coordinates."""
        error = _minkowski(x, u, dim).abs()
        size = length(x.movedim(dim, -1)) * length(u.movedim(dim, -1))
        if bool((error <= atol + rtol * size).all()):
            return True, None
        return False, f"<x, u> = 0 does not hold to rtol {rtol} of |x||u|"


def _space(p: Tensor, dim: int) -> Tensor:
    """Space components, in the last axis."""
    return p.movedim(dim, -1)[..., 1:]


def _ambient(p: Tensor, dim: int) -> Tensor:
    """Ambient vectors whose components lie in the last axis, with them in ``dim``."""
    return p.movedim(-1, dim)


def _minkowski(u: Tensor, v: Tensor, dim: int) -> Tensor:
    """u·v - u_t v_t, in the working dtype."""
    a, b = working(u).movedim(dim, -1), working(v).movedim(dim, -1)
    return dot(a[..., 1:], b[..., 1:]) - a[..., 0] * b[..., 0]


def _reduced(value: Tensor, keepdim: bool, dim: int) -> Tensor:
    return value.unsqueeze(dim) if keepdim else value


def _with_time(points: Tensor, u: Tensor, time: Tensor) -> Tensor:
    """Tangent vectors with the time component that tangency gives them."""
    return torch.cat([((points * u).sum(-1) / time)[..., None], u], -1)
