"""Everything the contrastive losses need of all pairs of a batch; ``op`` says what it is."""

from riemann_unlearn.ops.contrastive.definition import Contrastive, from_similarities, log_sum_exp, reference
from riemann_unlearn.ops.contrastive.op import contrastive

__all__ = ["Contrastive", "contrastive", "from_similarities", "log_sum_exp", "reference"]
