"""Contrastive and entailment losses: what CLIP, SigLIP and MERU are trained with."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from riemann_unlearn.losses import functional
from riemann_unlearn.losses.base import PairLoss, Pairs


class ContrastiveLoss(PairLoss):
    r"""The contrastive loss of τ·s: symmetric InfoNCE, or SigLIP's in a space with a sigmoid.

    See :func:`riemann_unlearn.losses.functional.contrastive`. Called with a curvature magnitude ``c``,
    features are tangent vectors at the origin of the Lorentz model (MERU, arXiv 2304.09172); without one they
    are compared by their cosine (CLIP).

    Parameters
    ----------
    space : Space, optional
        How features compare, if a call does not say it.
    manifold : geoopt.Manifold, optional
        Features are points on it instead.

    Examples
    --------
    >>> import torch
    >>> v = torch.eye(3) * 2
    >>> loss = ContrastiveLoss()
    >>> bool(loss(v, v, logit_scale=10.0, c=1.0) < loss(v, v.roll(1, 0), logit_scale=10.0, c=1.0))
    True
    """

    def terms(self, pairs: Pairs) -> dict[str, Tensor]:
        """L_con."""
        space = pairs.space
        return {"contrastive_loss": functional.contrastive(pairs.statistics, space.scale, space.bias)}


class EntailmentLoss(PairLoss):
    r"""Images (or narrower captions) should lie in the cones of their captions.

    See :func:`riemann_unlearn.losses.functional.entailment`.

    Parameters
    ----------
    space : Space, optional
        How features compare, if a call does not say it.
    manifold : geoopt.Manifold, optional
        Features are points on it instead of tangent vectors at the origin; one that is hyperbolic.
    min_radius : float, optional
        K: cones open at sinh r = 2K. The space's own by default, which is MERU's 0.1 for a call with ``c``.

    Raises
    ------
    ValueError
        For a space without cones, or a ``min_radius`` that is not positive.

    Examples
    --------
    >>> import torch
    >>> v = torch.tensor([[1.0, 0.0]])
    >>> loss = EntailmentLoss()
    >>> loss(2 * v, v, c=1.0), loss(-v, v, c=1.0) > 2      # ahead of its caption; behind it
    (tensor(0.), tensor(True))
    """

    needs_cones: ClassVar[bool] = True
    needs_scale: ClassVar[bool] = False

    def terms(self, pairs: Pairs) -> dict[str, Tensor]:
        """L_ent."""
        return {"entailment_loss": functional.entailment(pairs.cones)}
