"""How two sets of features are compared: the one place where a loss meets a geometry.

A loss of this package asks a :class:`Similarity` for similarities and, where cones are needed, for the
tangent vectors at the origin. There are three: cosine, hyperbolic features given as tangent vectors, and
points on a geoopt manifold.
"""

from __future__ import annotations

from typing import Protocol

import geoopt
import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.geometry import from_ambient, logmap0, tangent
from riemann_unlearn.geometry.precision import Curvature, length, result_dtype, widen, working
from riemann_unlearn.ops import Contrastive, contrastive, from_similarities


class Similarity(Protocol):
    """Compares features; larger is more similar."""

    def pairwise(self, a: Tensor, b: Tensor, c: Curvature | None) -> Tensor:
        """S of every row of ``a`` with every row of ``b``, shape (N, M)."""
        ...

    def matched(self, a: Tensor, b: Tensor, c: Curvature | None) -> Tensor:
        """S of each row of ``a`` with the same row of ``b``, shape (N,), accurate for near pairs."""
        ...

    def statistics(
        self,
        a: Tensor,
        b: Tensor,
        scale: Curvature,
        c: Curvature | None,
        forget: Tensor | None = None,
        caption_ids: Tensor | None = None,
    ) -> Contrastive:
        """What the contrastive terms need of all pairs; see :func:`riemann_unlearn.ops.contrastive`."""
        ...

    def tangents(self, x: Tensor, c: Curvature | None) -> tuple[Tensor, Curvature]:
        """``x`` as tangent vectors at the origin of the Lorentz model, and its curvature magnitude."""
        ...


class Cosine:
    """Features compared by the cosine of their angle; needs no curvature and has no cones."""

    def pairwise(self, a: Tensor, b: Tensor, c: Curvature | None) -> Tensor:
        """Cosines, shape (N, M)."""
        with torch.autocast(a.device.type, enabled=False):
            return _unit(a) @ _unit(b).mT

    def matched(self, a: Tensor, b: Tensor, c: Curvature | None) -> Tensor:
        """Cosines, shape (N,)."""
        return (_unit(a) * _unit(b)).sum(-1)

    def statistics(
        self,
        a: Tensor,
        b: Tensor,
        scale: Curvature,
        c: Curvature | None,
        forget: Tensor | None = None,
        caption_ids: Tensor | None = None,
    ) -> Contrastive:
        """By the op, of cosines."""
        return contrastive(a, b, scale, forget=forget, caption_ids=caption_ids)

    def tangents(self, x: Tensor, c: Curvature | None) -> tuple[Tensor, Curvature]:
        """Raise: entailment is hyperbolic."""
        raise ValueError("cosine features have no entailment cones; use a hyperbolic geometry")


class Hyperbolic:
    """Tangent vectors at the origin of the Lorentz model, compared by negative geodesic distance."""

    def pairwise(self, a: Tensor, b: Tensor, c: Curvature | None) -> Tensor:
        """-d, shape (N, M)."""
        return -tangent.cdist(a, b, _needed(c))

    def matched(self, a: Tensor, b: Tensor, c: Curvature | None) -> Tensor:
        """-d, shape (N,)."""
        return -tangent.dist(a, b, _needed(c))

    def statistics(
        self,
        a: Tensor,
        b: Tensor,
        scale: Curvature,
        c: Curvature | None,
        forget: Tensor | None = None,
        caption_ids: Tensor | None = None,
    ) -> Contrastive:
        """By the op, of distances."""
        return contrastive(a, b, scale, _needed(c), forget=forget, caption_ids=caption_ids)

    def tangents(self, x: Tensor, c: Curvature | None) -> tuple[Tensor, Curvature]:
        """``x`` and ``c`` as they are."""
        return x, _needed(c)


class OnManifold:
    """Points on a geoopt manifold, compared by its negative distance.

    ``Lorentz`` and ``PoincareBall`` are taken to tangent vectors at the origin by their logarithm, and
    everything is computed from those; any other manifold lends its own ``dist``, and has no cones.
    """

    def __init__(self, manifold: geoopt.Manifold) -> None:
        self.manifold = manifold
        self.has_cones = isinstance(manifold, (geoopt.Lorentz, geoopt.PoincareBall))

    def pairwise(self, a: Tensor, b: Tensor, c: Curvature | None) -> Tensor:
        """-d, shape (N, M)."""
        if self.has_cones:
            (a, k), (b, _) = self.tangents(a, c), self.tangents(b, c)
            return -tangent.cdist(a, b, k)
        _refuse(c)
        distance: Tensor = self.manifold.dist(a[:, None], b[None, :])
        return -distance

    def matched(self, a: Tensor, b: Tensor, c: Curvature | None) -> Tensor:
        """-d, shape (N,)."""
        if self.has_cones:
            (a, k), (b, _) = self.tangents(a, c), self.tangents(b, c)
            return -tangent.dist(a, b, k)
        distance: Tensor = self.manifold.dist(a, b)
        return -distance

    def statistics(
        self,
        a: Tensor,
        b: Tensor,
        scale: Curvature,
        c: Curvature | None,
        forget: Tensor | None = None,
        caption_ids: Tensor | None = None,
    ) -> Contrastive:
        """By the op where there are tangent vectors; else from the manifold's own distances."""
        if self.has_cones:
            (a, k), (b, _) = self.tangents(a, c), self.tangents(b, c)
            return contrastive(a, b, scale, k, forget=forget, caption_ids=caption_ids)
        s = torch.diagonal_scatter(self.pairwise(a, b, c), self.matched(a, b, c))
        return from_similarities(s, scale, forget=forget, caption_ids=caption_ids)

    def tangents(self, x: Tensor, c: Curvature | None) -> tuple[Tensor, Curvature]:
        """The logarithm at the origin, in the Lorentz model of the manifold's curvature."""
        _refuse(c)
        if isinstance(self.manifold, geoopt.Lorentz):
            k = 1 / working(self.manifold.k)
            return logmap0(from_ambient(x), k), k
        if isinstance(self.manifold, geoopt.PoincareBall):
            k = working(self.manifold.c)
            return _from_ball(x, k), k
        raise ValueError(_without_cones(self.manifold))


def similarity(geometry: str, manifold: geoopt.Manifold | None) -> Similarity:
    """The similarity that a loss was asked for.

    Raises
    ------
    ValueError
        When ``geometry`` is neither "hyperbolic" nor "euclidean".
    """
    if manifold is not None:
        return OnManifold(manifold)
    if geometry == "hyperbolic":
        return Hyperbolic()
    if geometry == "euclidean":
        return Cosine()
    raise ValueError(f"geometry must be 'hyperbolic' or 'euclidean', got {geometry!r}")


def hyperbolic(manifold: geoopt.Manifold | None) -> Hyperbolic | OnManifold:
    """The similarity of a loss with entailment cones.

    Raises
    ------
    ValueError
        For a manifold that has none.
    """
    if manifold is None:
        return Hyperbolic()
    on = OnManifold(manifold)
    if not on.has_cones:
        raise ValueError(_without_cones(manifold))
    return on


def _without_cones(manifold: geoopt.Manifold) -> str:
    return (
        f"{type(manifold).__name__} has no entailment cones; expected geoopt.Lorentz or geoopt.PoincareBall"
    )


def _from_ball(y: Tensor, c: Tensor) -> Tensor:
    """Tangent vectors at the origin of the Lorentz model from points of the Poincaré ball.

    The logarithm at the ball's centre, times λ₀ = 2 by which the ball's metric is larger there:
    2 artanh(√c|y|)/(√c|y|)·y. Rounding may put a point on the rim; it counts as the last one inside.
    """
    wide = working(y)
    n = c.sqrt() * length(wide)
    away = n > 0
    n = torch.where(away, n, 0.5).clamp(max=1 - torch.finfo(n.dtype).eps)
    return (wide * torch.where(away, 2 * torch.atanh(n) / n, 2.0)[..., None]).to(result_dtype(y))


def _refuse(c: Curvature | None) -> None:
    if c is not None:
        raise ValueError("c belongs to the manifold; leave it out when manifold= is given")


def _needed(c: Curvature | None) -> Curvature:
    if c is None:
        raise ValueError("hyperbolic features need the curvature magnitude: pass c=")
    return c


def _unit(x: Tensor) -> Tensor:
    return F.normalize(widen(x), dim=-1)
