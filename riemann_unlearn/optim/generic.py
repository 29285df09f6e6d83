"""Steps on any geoopt manifold, by the manifold's own maps.

The arithmetic is geoopt's, statement by statement, so that a run can change optimizers and go on.
"""

from __future__ import annotations

from typing import Any

import geoopt
import torch
from torch import Tensor

from riemann_unlearn.optim.lorentz import Moment


def adam_points(
    manifold: geoopt.Manifold,
    points: Tensor,
    gradients: Tensor,
    momenta: Tensor,
    moment: Moment,
    *,
    beta: float,
    correction: float | Tensor,
    lr: float | Tensor,
    retraction: bool,
    longest: float,
) -> tuple[Tensor, Tensor]:
    """One Adam step; the new points and momenta. ``moment`` is updated in place."""
    # geoopt's Lorentz turns a sign in place, and the gradient may be the parameter's own ``grad``.
    gradients = manifold.egrad2rgrad(points, gradients.clone())
    momenta = momenta * beta + gradients * (1 - beta)
    square = manifold.component_inner(points, gradients)
    moment.average.mul_(moment.beta).add_(square, alpha=1 - moment.beta)
    denominator = moment.average
    if moment.largest is not None:
        # Before the bias correction, as in geoopt and torch.
        denominator = torch.maximum(moment.largest, moment.average, out=moment.largest)
    if not isinstance(lr, Tensor) and lr == 0:
        return points, momenta  # a manifold's own map of the zero vector may round the point
    direction = (momenta / correction) / ((denominator / moment.correction).sqrt_() + moment.eps)
    return follow(manifold, points, direction * -lr, momenta, retraction=retraction, longest=longest)


def follow(
    manifold: geoopt.Manifold,
    points: Tensor,
    step: Tensor,
    vectors: Tensor,
    *,
    retraction: bool,
    longest: float,
) -> tuple[Tensor, Tensor]:
    """Move points by a tangent vector of at most a length, and carry vectors along."""
    if longest < float("inf"):
        # An indefinite metric may round the square of a short vector below 0, whose root is NaN.
        length = manifold.component_inner(points, step).clamp_min(0).sqrt()
        step = step * (longest / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1)
    mapped: Any = manifold.retr_transp if retraction else manifold.expmap_transp
    new_points, new_vectors = mapped(points, step, vectors)
    return new_points, new_vectors


def decay_toward_origin(
    manifold: geoopt.Manifold, points: Tensor, vectors: Tensor | None, keep: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    """Points at ``keep`` times their distance from the origin, and vectors carried along."""
    if not isinstance(keep, Tensor) and keep == 1:
        return points, vectors
    if isinstance(manifold, geoopt.Euclidean):
        # geoopt.Euclidean has no logmap0. Its transport changes no vector.
        return points * keep, vectors
    # On the geodesic from the origin, at keep times the distance.
    new_points = manifold.expmap0(manifold.logmap0(points) * keep)
    return new_points, None if vectors is None else manifold.transp(points, new_points, vectors)


def has_origin(manifold: geoopt.Manifold) -> bool:
    """Whether weight decay has somewhere to go."""
    return isinstance(manifold, geoopt.Euclidean) or hasattr(manifold, "logmap0")


def second_moment(state: dict[str, Any], name: str, manifold: geoopt.Manifold, like: Tensor) -> Tensor:
    """The second moment of one parameter, with one number a point where its manifold has one metric.

    geoopt keeps a copy of that number for each coordinate; of a state that came from there, one is kept.
    """
    # Only its shape is of use: how many numbers the metric has for a point is for the manifold to say.
    inner = manifold.component_inner(like, torch.zeros_like(like))
    held: Tensor | None = state.get(name)
    if held is None:
        state[name] = torch.zeros_like(inner)
    elif held.shape != inner.shape:
        # The copies are equal, so the first along each axis will do. Cloned, or a view would keep them all.
        state[name] = held[tuple(slice(size) for size in inner.shape)].clone()
    moment: Tensor = state[name]
    return moment
