"""Everything the contrastive losses need of all pairs of a batch; ``op`` says what it is."""

from riemann_unlearn.ops.contrastive.op import contrastive
from riemann_unlearn.ops.contrastive.reference import Contrastive, from_similarities, reference

__all__ = ["Contrastive", "contrastive", "from_similarities", "reference"]
