"""The hot paths of training and unlearning, fused and in linear memory.

An op is a folder: ``op`` says what it gives, checks its arguments and is known to torch, and beside it stand
its implementations. ``polar`` and ``workers`` are what they share, ``backend`` has the records of who serves
what.
"""

from riemann_unlearn.ops.backend import BACKENDS, Backend, backend
from riemann_unlearn.ops.cones import Cones, cones
from riemann_unlearn.ops.contrastive import Contrastive, contrastive, from_similarities, log_sum_exp
from riemann_unlearn.ops.ranks import ranks
from riemann_unlearn.ops.topk import TopK, topk

__all__ = [
    "BACKENDS",
    "Backend",
    "Cones",
    "Contrastive",
    "TopK",
    "backend",
    "cones",
    "contrastive",
    "from_similarities",
    "log_sum_exp",
    "ranks",
    "topk",
]
