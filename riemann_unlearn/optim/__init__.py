"""Riemannian optimizers at torch's speed, for any geoopt model.

:class:`RiemannianAdam`, :class:`RiemannianAdamW` and :class:`RiemannianSGD` step any mixture of Euclidean and
manifold parameters; :func:`curvature_group` lets a curvature be one of them; :func:`project_conflicting` and
:class:`GradientSurgery` keep one loss's gradient from working against another's.
"""

from riemann_unlearn.optim.adam import RiemannianAdam, RiemannianAdamW
from riemann_unlearn.optim.curvature import curvature_group
from riemann_unlearn.optim.sgd import RiemannianSGD
from riemann_unlearn.optim.surgery import (
    GradientSurgery,
    clip_grad_norm_,
    project_conflicting,
    riemannian_inner,
)

__all__ = [
    "GradientSurgery",
    "RiemannianAdam",
    "RiemannianAdamW",
    "RiemannianSGD",
    "clip_grad_norm_",
    "curvature_group",
    "project_conflicting",
    "riemannian_inner",
]
