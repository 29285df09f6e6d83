"""Points on a geoopt manifold, compared by geodesic distance.

On a hyperbolic one (``Lorentz``, ``PoincareBall``, ``Stereographic`` with k < 0, and each of them ``Scaled``)
points are taken to tangent vectors at the origin of the Lorentz model, where distances are accurate, the
fused op applies and there are entailment cones. Any other manifold lends its own ``dist``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import ClassVar

import geoopt
import torch
from torch import Tensor

from riemann_unlearn.geometry import expmap0, from_ambient, logmap0, to_ambient
from riemann_unlearn.geometry.precision import Curvature, length, result_dtype, widen, working
from riemann_unlearn.ops import Contrastive
from riemann_unlearn.registry import register
from riemann_unlearn.spaces.base import Space
from riemann_unlearn.spaces.lorentz import LorentzTangents


@register
@dataclass(frozen=True, eq=False)
class OnManifold(Space):
    """Points on ``manifold``; the similarity is minus their distance.

    Parameters
    ----------
    scale : float or Tensor
        τ.
    manifold : geoopt.Manifold
        One whose points have two axes (matrices) takes features of shape (B, n, m). Its parameters (a
        learnable curvature, a learnable scale) receive gradients.
    min_radius : float
        K of the entailment cones, if the manifold is hyperbolic.

    Raises
    ------
    TypeError
        For something that is no geoopt manifold.

    Examples
    --------
    >>> import torch
    >>> space = OnManifold(manifold=geoopt.Sphere())
    >>> space.has_cones, space.matched(torch.eye(2), torch.eye(2).flip(0))
    (False, tensor([-1.5708, -1.5708]))
    >>> OnManifold(manifold=geoopt.Scaled(geoopt.PoincareBall(), 2.0)).has_cones
    True
    """

    name: ClassVar[str] = "manifold"

    manifold: geoopt.Manifold = None  # no manifold is refused below
    min_radius: float = 0.1
    _hyperbolic: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what is no manifold."""
        if not isinstance(self.manifold, geoopt.Manifold):
            raise TypeError(f"manifold must be a geoopt.Manifold, got {self.manifold!r}")
        # Once, and not at every call: the sign of a k on a GPU would have to be waited for.
        # A k that is learned through 0 later goes unnoticed here. Set past the dataclass, which is frozen.
        object.__setattr__(self, "_hyperbolic", _is_hyperbolic(self.manifold))

    @property
    def has_cones(self) -> bool:
        """Whether the manifold was a hyperbolic space that this library knows when this was made."""
        return self._hyperbolic

    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        """-d, shape (N, M)."""
        if self.has_cones:
            space, a, b = self._in_tangents(a, b)
            return space.pairwise(a, b)
        n, m = len(a), len(b)
        # One flat batch of pairs: not every manifold's distance broadcasts over two leading axes.
        # flatten copies what expand only repeats: N·M points are held, and not N·M numbers.
        left = a[:, None].expand(n, m, *a.shape[1:]).flatten(0, 1)
        right = b[None].expand(n, m, *b.shape[1:]).flatten(0, 1)
        return self._own(left, right).view(n, m)

    def matched(self, a: Tensor, b: Tensor) -> Tensor:
        """-d, shape (N,)."""
        if self.has_cones:
            space, a, b = self._in_tangents(a, b)
            return space.matched(a, b)
        return self._own(a, b)

    def statistics(
        self, a: Tensor, b: Tensor, *, forget: Tensor | None = None, caption_ids: Tensor | None = None
    ) -> Contrastive:
        """As :meth:`Space.statistics`; by the fused op where there are tangent vectors."""
        if self.has_cones:
            space, a, b = self._in_tangents(a, b)
            return space.statistics(a, b, forget=forget, caption_ids=caption_ids)
        return super().statistics(a, b, forget=forget, caption_ids=caption_ids)

    def ranks(self, features: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """As :meth:`Space.ranks`."""
        if self.has_cones:
            space, features, bank = self._in_tangents(features, bank)
            return space.ranks(features, bank, own)
        return super().ranks(features, bank, own)

    def nearest(self, features: Tensor, bank: Tensor, k: int) -> Tensor:
        """As :meth:`Space.nearest`."""
        if self.has_cones:
            space, features, bank = self._in_tangents(features, bank)
            return space.nearest(features, bank, k)
        return super().nearest(features, bank, k)

    def mean(self, features: Tensor, own: Tensor, count: int) -> Tensor:
        """The point that each class's mean stands for, shape (count, ...).

        On a hyperbolic manifold it is the mean of the tangent vectors at the origin, so that points and the
        vectors that stand for them have one mean; elsewhere the mean of the coordinates, put back onto the
        manifold.
        """
        if self.has_cones:
            # Every tangent vector stands for a point, so there is nothing to project.
            return self._points(super().mean(self.tangents(features)[0], own, count))
        projected: Tensor = self.manifold.projx(super().mean(features, own, count))
        return projected

    def tangents(self, x: Tensor) -> tuple[Tensor, Curvature]:
        """The logarithm at the origin, in the Lorentz model of the manifold's curvature."""
        if not self.has_cones:
            return super().tangents(x)
        base, scale = _unscaled(self.manifold)
        c = _curvature(base)
        # geoopt's Lorentz has the time component first. It is left out: the others determine it, so an error
        # stored in it does no harm.
        v = logmap0(from_ambient(x), c) if isinstance(base, geoopt.Lorentz) else _from_ball(x, c)
        # Distances that are s times longer make s times longer vectors, and a curvature s² times smaller.
        return (v, c) if scale is None else (v * scale, c / scale**2)

    def detached(self) -> OnManifold:
        """The same space on a copy of the manifold, whose parameters take no gradient."""
        # A module has no detach, and requires_grad_ on the manifold itself would freeze it for the model: a
        # copy. _hyperbolic is no argument of __init__, so the fields are not handed on as the base class
        # does.
        return replace(
            self,
            scale=self.scale.detach() if isinstance(self.scale, Tensor) else self.scale,
            manifold=copy.deepcopy(self.manifold).requires_grad_(False),
        )

    def check(self, name: str, features: Tensor) -> None:
        """As :meth:`Space.check`, for points of as many axes as the manifold's have, real or complex."""
        if not (features.is_floating_point() or features.is_complex()):
            raise TypeError(f"{name} must be floating point, got {features.dtype}")
        # geoopt's Euclidean() has ndim 0, for to it each coordinate is a point; here a point is a row.
        axes = max(1, self.manifold.ndim)
        if features.ndim != 1 + axes:
            shape = "(B, D)" if axes == 1 else "(B, n, m)"
            raise ValueError(
                f"{name} must have shape {shape}, a batch of points of {self._described()}, got "
                f"{tuple(features.shape)}"
            )

    def _described(self) -> str:
        base, _ = _unscaled(self.manifold)
        return type(base).__name__

    def _own(self, a: Tensor, b: Tensor) -> Tensor:
        """The negative of the manifold's own distance, shape (N,)."""
        try:
            # Some distances take matrix products, which autocast would round to three digits.
            with torch.autocast(a.device.type, enabled=False):
                d: Tensor = self.manifold.dist(_widen(a), _widen(b))
        except NotImplementedError:
            raise ValueError(
                f"geoopt has no distance on {self._described()}; use a manifold with a dist, or a Space of "
                "your own"
            ) from None
        # Some keep an axis of length 1; Euclidean() measures every coordinate by itself, and the distance is
        # the length of all of them.
        return -(d if d.ndim == 1 else torch.linalg.vector_norm(d.flatten(1), dim=1))

    def _in_tangents(self, a: Tensor, b: Tensor) -> tuple[LorentzTangents, Tensor, Tensor]:
        """The space of the tangent vectors that points stand for, and both sides in it."""
        (a, c), (b, _) = self.tangents(a), self.tangents(b)
        # τ is the same there, for the distances are: v and c carry the manifold's scale.
        return LorentzTangents(self.scale, c=c, min_radius=self.min_radius), a, b

    def _points(self, v: Tensor) -> Tensor:
        """The inverse of :meth:`tangents`."""
        base, scale = _unscaled(self.manifold)
        # √c|v| is the same on both sides of a scale: s times longer vectors, √c s times smaller.
        c, v = _curvature(base), v if scale is None else v / scale
        return to_ambient(expmap0(v, c), c) if isinstance(base, geoopt.Lorentz) else _to_ball(v, c)


def _widen(x: Tensor) -> Tensor:
    return x if x.is_complex() else widen(x)


def _unscaled(manifold: geoopt.Manifold) -> tuple[geoopt.Manifold, Tensor | None]:
    """The manifold within all ``Scaled``, and by what its distances are multiplied."""
    scale = None
    while isinstance(manifold, geoopt.Scaled):
        own = working(manifold.scale)
        scale, manifold = own if scale is None else scale * own, manifold.base
    return manifold, scale


def _is_hyperbolic(manifold: geoopt.Manifold) -> bool:
    base, _ = _unscaled(manifold)
    if isinstance(base, (geoopt.Lorentz, geoopt.PoincareBall)):
        return True
    # A Stereographic is a ball, a plane or a sphere by the sign of k alone.
    return isinstance(base, geoopt.Stereographic) and bool(base.k < 0)


def _curvature(base: geoopt.Manifold) -> Tensor:
    """The curvature magnitude of a hyperbolic manifold: geoopt's Lorentz has k = 1/c, its ball k = -c."""
    return 1 / working(base.k) if isinstance(base, geoopt.Lorentz) else -working(base.k)


def _from_ball(y: Tensor, c: Tensor) -> Tensor:
    """Tangent vectors at the origin of the Lorentz model from points of the Poincaré ball.

    The logarithm at the ball's centre, times λ₀ = 2 by which the ball's metric is larger there:
    2 artanh(√c|y|)/(√c|y|)·y. Rounding may put a point on the rim; it counts as the last one inside.
    """
    wide = working(y)
    # √c|y| is below 1 but for rounding: the ball of curvature -c has radius 1/√c.
    n = c.sqrt() * length(wide)
    away = n > 0
    # At the centre 0.5 stands in, for the branch that is not taken has a gradient too, and 0 times that of
    # 0/0 is NaN. The end in float64 is at radius 2 artanh(1 - 2⁻⁵²), about 53 log 2 = 36.7; artanh(1) is
    # infinite.
    n = torch.where(away, n, 0.5).clamp(max=1 - torch.finfo(n.dtype).eps)
    return (wide * torch.where(away, 2 * torch.atanh(n) / n, 2.0)[..., None]).to(result_dtype(y))


def _to_ball(v: Tensor, c: Tensor) -> Tensor:
    """The inverse of :func:`_from_ball`: tanh(r/2)/r·v with r = √c|v|."""
    wide = working(v)
    r = c.sqrt() * length(wide)
    away = r > 0
    # As above: any number but 0 will do for the branch that is not taken.
    r = torch.where(away, r, 1.0)
    return (wide * torch.where(away, torch.tanh(r / 2) / r, 0.5)[..., None]).to(result_dtype(v))
