"""The hot paths of training and unlearning, fused and in linear memory."""

from riemann_unlearn.ops.backend import backend
from riemann_unlearn.ops.cones import Cones, cones
from riemann_unlearn.ops.contrastive import Contrastive, contrastive, from_similarities
from riemann_unlearn.ops.ranks import ranks
from riemann_unlearn.ops.topk import TopK, topk

__all__ = [
    "Cones",
    "Contrastive",
    "TopK",
    "backend",
    "cones",
    "contrastive",
    "from_similarities",
    "ranks",
    "topk",
]
