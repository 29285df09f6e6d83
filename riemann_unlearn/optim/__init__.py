"""Riemannian optimizers at torch's speed, for any geoopt model."""

from riemann_unlearn.optim.adam import RiemannianAdam, RiemannianAdamW
from riemann_unlearn.optim.curvature import curvature_group
from riemann_unlearn.optim.sgd import RiemannianSGD

__all__ = ["RiemannianAdam", "RiemannianAdamW", "RiemannianSGD", "curvature_group"]
