"""Contrastive and entailment losses: what MERU and CLIP are trained with."""

from __future__ import annotations

import geoopt
from torch import Tensor, nn

from riemann_unlearn.geometry.precision import Curvature, result_dtype
from riemann_unlearn.losses import terms
from riemann_unlearn.losses.checks import check_batch, check_settings
from riemann_unlearn.losses.similarity import hyperbolic, similarity
from riemann_unlearn.ops import cones


class ContrastiveLoss(nn.Module):
    r"""Symmetric InfoNCE of τ·s, with s the negative geodesic distance or the cosine.

    See :func:`riemann_unlearn.losses.functional.contrastive`.

    Parameters
    ----------
    geometry : str
        "hyperbolic": features are tangent vectors at the origin of the Lorentz model (MERU, arXiv
        2304.09172); "euclidean": they are compared by their cosine (CLIP).
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

    def __init__(self, *, geometry: str = "hyperbolic", manifold: geoopt.Manifold | None = None) -> None:
        super().__init__()
        self.similarity = similarity(geometry, manifold)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        *,
        logit_scale: Curvature,
        c: Curvature | None = None,
        caption_ids: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a batch of pairs.

        Parameters
        ----------
        image_features, text_features : Tensor, shape (B, D)
        logit_scale : float or Tensor
            τ, not its logarithm.
        c : float or Tensor, optional
            Curvature magnitude of hyperbolic tangent features.
        caption_ids : Tensor, shape (B,), optional
            Integers; pairs with equal ids are not negatives of each other.
        output_dict : bool
            Return ``{"contrastive_loss": loss}``.

        Raises
        ------
        ValueError
            For features of different shapes, or hyperbolic features without ``c``.
        """
        check_batch(image_features, text_features, caption_ids=caption_ids)
        found = self.similarity.statistics(
            image_features, text_features, logit_scale, c, caption_ids=caption_ids
        )
        loss = terms.contrastive(found, logit_scale).to(result_dtype(image_features, text_features))
        return {"contrastive_loss": loss} if output_dict else loss


class EntailmentLoss(nn.Module):
    r"""Images (or narrower captions) should lie in the cones of their captions.

    See :func:`riemann_unlearn.losses.functional.entailment`.

    Parameters
    ----------
    min_radius : float
        K: cones open at sinh r = 2K; 0.1 as in MERU.
    manifold : geoopt.Lorentz or geoopt.PoincareBall, optional
        Features are points on it instead of tangent vectors at the origin.

    Raises
    ------
    ValueError
        For another manifold, or a ``min_radius`` that is not positive.

    Examples
    --------
    >>> import torch
    >>> v = torch.tensor([[1.0, 0.0]])
    >>> loss = EntailmentLoss()
    >>> loss(2 * v, v, c=1.0), loss(-v, v, c=1.0) > 2      # ahead of its caption; behind it
    (tensor(0.), tensor(True))
    """

    def __init__(self, *, min_radius: float = 0.1, manifold: geoopt.Manifold | None = None) -> None:
        super().__init__()
        check_settings(min_radius=min_radius)
        self.min_radius = min_radius
        self.similarity = hyperbolic(manifold)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        *,
        c: Curvature | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a batch of pairs; arguments and errors as for :class:`ContrastiveLoss`."""
        check_batch(image_features, text_features)
        images, curvature = self.similarity.tangents(image_features, c)
        texts, _ = self.similarity.tangents(text_features, c)
        found = cones(texts, images, curvature, min_radius=self.min_radius)
        loss = terms.entailment(found).to(result_dtype(images, texts))
        return {"entailment_loss": loss} if output_dict else loss
