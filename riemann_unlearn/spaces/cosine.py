"""Features compared by the cosine of the angle between them: CLIP (Radford et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn import ops
from riemann_unlearn.geometry.precision import widen
from riemann_unlearn.ops import Contrastive
from riemann_unlearn.registry import register
from riemann_unlearn.spaces.base import Space, require_finite


@register
@dataclass(frozen=True, eq=False)
class Cosine(Space):
    """Vectors compared by the cosine of their angle; their lengths do not matter.

    Examples
    --------
    >>> import torch
    >>> Cosine(scale=10.0).logits(torch.tensor([[2.0, 0.0]]), torch.eye(2))
    tensor([[10.,  0.]])
    """

    name: ClassVar[str] = "cosine"

    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosines, shape (N, M)."""
        # Autocast would do the product in half precision, whose cosines have three digits.
        with torch.autocast(a.device.type, enabled=False):
            return _unit(a) @ _unit(b).mT

    def matched(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosines, shape (N,)."""
        # No matrix product, so autocast has no half precision for it.
        return (_unit(a) * _unit(b)).sum(-1)

    def statistics(
        self, a: Tensor, b: Tensor, *, forget: Tensor | None = None, caption_ids: Tensor | None = None
    ) -> Contrastive:
        """As :meth:`Space.statistics`, by the fused op, in linear memory."""
        return ops.contrastive(a, b, self.scale, forget=forget, caption_ids=caption_ids)

    def ranks(self, features: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """As :meth:`Space.ranks`, without the matrix; rows that are equal tie exactly."""
        # Before the op, which counts NaN as more similar: its ranks would look like forgetting.
        require_finite(features, bank)
        return ops.ranks(features, bank, own)

    def nearest(self, features: Tensor, bank: Tensor, k: int) -> Tensor:
        """As :meth:`Space.nearest`, without the matrix."""
        return ops.topk(features, bank, k).indices

    def mean(self, features: Tensor, own: Tensor, count: int) -> Tensor:
        """The direction of each class's mean, shape (count, D)."""
        # Of the features as they are: those of the models have length 1, so each of a class counts alike.
        return F.normalize(super().mean(features, own, count), dim=-1)


def _unit(x: Tensor) -> Tensor:
    # Widened first: a unit vector in half precision has two or three digits. A zero vector stays zero, for
    # normalize divides by no less than 1e-12, and its cosines are 0 and not NaN.
    return F.normalize(widen(x), dim=-1)
