r"""SigLIP's space (Zhai et al. 2023, arXiv 2303.15343): cosines, each pair judged by itself.

Every pair (a, b) of a batch is a yes-or-no question with the answer σ(±l_ab), and SigLIP's loss is

.. math::
    -\frac1B \sum_{a,b} \log σ(z_{ab} l_{ab})
    = \frac1B \sum_a \Bigl[\sum_b \log(1 + e^{l_{ab}}) - l_{aa}\Bigr], \qquad z_{aa} = 1,\ z_{ab} = -1,

since :math:`-\log σ(l) = \log(1 + e^l) - l` and :math:`-\log σ(-l) = \log(1 + e^l)`. So a row's normalizer is
a sum of softplus, and the loss has the form that InfoNCE has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.ops import Contrastive
from riemann_unlearn.registry import register
from riemann_unlearn.spaces.base import Space
from riemann_unlearn.spaces.cosine import Cosine


def sum_softplus(logits: Tensor, among: Tensor, dim: int) -> Tensor:
    """The sum of log(1 + e^l) over the pairs ``among``, along an axis."""
    # Of no pairs it is 0, the logarithm of an empty product, where a softmax has -inf. softplus does not
    # overflow: beyond 20 it gives l itself, and what it leaves out, log(1 + e^-l), is at most 2.1e-9.
    return torch.where(among, F.softplus(logits), 0.0).sum(dim)


@register
@dataclass(frozen=True, eq=False)
class Sigmoid(Cosine):
    """Cosines with a scale and a bias, under a sigmoid instead of a softmax.

    Parameters
    ----------
    scale : float or Tensor
        τ.
    bias : float or Tensor
        Added to every logit; SigLIP starts from -10, for most pairs of a batch do not match.

    Examples
    --------
    >>> import torch
    >>> space = Sigmoid(scale=10.0, bias=-10.0)
    >>> space.logits(torch.eye(2), torch.eye(2))
    tensor([[  0., -10.],
            [-10.,   0.]])
    """

    name: ClassVar[str] = "sigmoid"

    # A field with a default takes the place of Space's property, which could not be set.
    bias: Curvature = 0.0

    def normalizer(self, logits: Tensor, among: Tensor, dim: int) -> Tensor:
        """A sum of softplus: each pair is judged by itself."""
        return sum_softplus(logits, among, dim)

    def statistics(
        self, a: Tensor, b: Tensor, *, forget: Tensor | None = None, caption_ids: Tensor | None = None
    ) -> Contrastive:
        """As :meth:`Space.statistics`; rows and columns are sums of softplus."""
        # Not as cosines do: their fused op knows the softmax alone.
        return Space.statistics(self, a, b, forget=forget, caption_ids=caption_ids)
