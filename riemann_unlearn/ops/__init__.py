"""The hot paths of training and unlearning, fused and in linear memory."""

from riemann_unlearn.ops.backend import backend
from riemann_unlearn.ops.contrastive import Contrastive, contrastive

__all__ = ["Contrastive", "backend", "contrastive"]
