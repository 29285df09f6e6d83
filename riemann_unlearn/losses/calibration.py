"""Calibration losses: AC in any geometry, HAC in a hyperbolic one.

The papers' exact weights were not published; the forms here are a reconstruction, and every choice made
is named where it is made. Reconstruction: all weights are 1 by default, but for λ = 0.2 of the retain
pairs' entailment, which is MERU's, and for γ = 0.01: L_perf is measured in logits and the other terms in
similarities, so its gradient is τ times theirs, and 0.01 evens that out at CLIP's and MERU's largest τ of
100. With γ = 1 it drowns every other term and most of what should be retained.
"""

from __future__ import annotations

from collections.abc import Sequence

import geoopt
from torch import Tensor, nn

from riemann_unlearn.geometry.precision import Curvature, result_dtype
from riemann_unlearn.losses.checks import check_batch, check_settings
from riemann_unlearn.losses.similarity import Similarity, hyperbolic, similarity
from riemann_unlearn.ops import calibration
from riemann_unlearn.ops.calibration import ALIGNMENT, TERMS, alignment

GAMMA = 0.01
"""Default weight of the performance-preserving term, one over the largest logit scale."""


class AlignmentCalibration(nn.Module):
    r"""Alignment Calibration (Wang et al., arXiv 2406.03603).

    .. math::
        L = L_{con}(R) + ε\,(α L_{neg}(U) + β L_{pos}(U) + γ L_{perf}(U))

    with R the retain and U the forget pairs of the batch; the terms are those of
    :mod:`riemann_unlearn.losses.functional`. Reconstruction: L_con contrasts retain pairs among
    themselves; the sums of L_perf run over the whole batch.

    Parameters
    ----------
    alpha, beta, gamma : float
        Weights of the negative, the positive and the performance-preserving term.
    epsilon : float
        Weight of all three.
    geometry : str
        "euclidean" (cosine, as in the paper) or "hyperbolic" (negative geodesic distance of tangent
        features).
    manifold : geoopt.Manifold, optional
        Features are points on it instead.

    Examples
    --------
    >>> import torch
    >>> features = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    >>> forget = torch.arange(8) < 3
    >>> terms = AlignmentCalibration()(features, features, forget, logit_scale=10.0, output_dict=True)
    >>> sorted(terms)
    ['contrastive_loss', 'negative_alignment_loss', 'performance_loss', 'positive_alignment_loss']
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = GAMMA,
        *,
        epsilon: float = 1.0,
        geometry: str = "euclidean",
        manifold: geoopt.Manifold | None = None,
    ) -> None:
        super().__init__()
        check_settings(min_radius=1.0, alpha=alpha, beta=beta, gamma=gamma, epsilon=epsilon)
        self.alpha, self.beta, self.gamma, self.epsilon = alpha, beta, gamma, epsilon
        self.similarity: Similarity = similarity(geometry, manifold)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        forget_mask: Tensor,
        *,
        logit_scale: Curvature,
        c: Curvature | None = None,
        caption_ids: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a batch of forget and retain pairs.

        Parameters
        ----------
        image_features, text_features : Tensor, shape (B, D)
        forget_mask : Tensor, shape (B,)
            bool; True for the pairs to be forgotten. All or none may be True.
        logit_scale : float or Tensor
            τ, not its logarithm.
        c : float or Tensor, optional
            Curvature magnitude of hyperbolic tangent features.
        caption_ids : Tensor, shape (B,), optional
            Integers; pairs with equal ids are not negatives of each other.
        output_dict : bool
            Return the weighted terms, whose sum is the loss.

        Raises
        ------
        ValueError
            For arguments whose shapes do not fit, or hyperbolic features without ``c``.
        """
        check_batch(image_features, text_features, forget_mask=forget_mask, caption_ids=caption_ids)
        found = self.similarity.statistics(
            image_features, text_features, logit_scale, c, forget=forget_mask, caption_ids=caption_ids
        )
        terms = alignment(found, logit_scale, forget_mask, self.alignment_weights())
        return _result(terms.to(result_dtype(image_features, text_features)), ALIGNMENT, output_dict)

    def alignment_weights(self) -> tuple[float, ...]:
        """The weights of the terms that depend on similarities alone."""
        return 1.0, self.epsilon * self.alpha, self.epsilon * self.beta, self.epsilon * self.gamma


class HyperbolicAlignmentCalibration(AlignmentCalibration):
    r"""Hyperbolic Alignment Calibration (arXiv 2503.15166).

    .. math::
        L = L_{con}(R) + λ L_{ent}(R) + ε\,(α L_{neg} + β L_{pos} + γ L_{perf} + ω L_{out} + η L_{norm})(U)

    Parameters
    ----------
    alpha, beta, gamma, omega, eta : float
        Weights of the negative, positive, performance-preserving, entailment-calibration and
        norm-regularization terms.
    epsilon : float
        Weight of all five.
    entailment_weight : float
        λ, the weight of the retain pairs' entailment; 0.2 as in MERU.
    target_radius : "retain", "origin" or float
        r* of :func:`riemann_unlearn.losses.functional.norm_regularization`.
    min_radius : float
        K of the entailment cones.
    manifold : geoopt.Lorentz or geoopt.PoincareBall, optional
        Features are points on it; without it they are tangent vectors at the origin.

    Examples
    --------
    >>> import torch
    >>> v = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    >>> forget = torch.arange(8) < 3
    >>> loss = HyperbolicAlignmentCalibration()
    >>> terms = loss(v, v, forget, logit_scale=10.0, c=1.0, output_dict=True)
    >>> bool(torch.isclose(sum(terms.values()), loss(v, v, forget, logit_scale=10.0, c=1.0)))
    True
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = GAMMA,
        omega: float = 1.0,
        eta: float = 1.0,
        *,
        epsilon: float = 1.0,
        entailment_weight: float = 0.2,
        target_radius: str | float = "retain",
        min_radius: float = 0.1,
        manifold: geoopt.Manifold | None = None,
    ) -> None:
        super().__init__(alpha, beta, gamma, epsilon=epsilon, geometry="hyperbolic", manifold=manifold)
        check_settings(
            min_radius=min_radius,
            target_radius=target_radius,
            omega=omega,
            eta=eta,
            entailment_weight=entailment_weight,
        )
        self.similarity = hyperbolic(manifold)
        self.omega, self.eta = omega, eta
        self.entailment_weight = entailment_weight
        self.target_radius, self.min_radius = target_radius, min_radius
        named = {"retain": None, "origin": 0.0}
        self._target = named[target_radius] if isinstance(target_radius, str) else target_radius

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        forget_mask: Tensor,
        *,
        logit_scale: Curvature,
        c: Curvature | None = None,
        caption_ids: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a batch; arguments and errors as for :class:`AlignmentCalibration`."""
        check_batch(image_features, text_features, forget_mask=forget_mask, caption_ids=caption_ids)
        # Taken to the tangent space once: every term starts there.
        images, curvature = self.similarity.tangents(image_features, c)
        texts, _ = self.similarity.tangents(text_features, c)
        terms = calibration(
            images,
            texts,
            logit_scale,
            curvature,
            forget_mask,
            weights=(
                *self.alignment_weights(),
                self.entailment_weight,
                self.epsilon * self.omega,
                self.epsilon * self.eta,
            ),
            caption_ids=caption_ids,
            min_radius=self.min_radius,
            target_radius=self._target,
        )
        return _result(terms.to(result_dtype(images, texts)), TERMS, output_dict)


def _result(terms: Tensor, names: Sequence[str], output_dict: bool) -> Tensor | dict[str, Tensor]:
    if not output_dict:
        return terms.sum()
    return {f"{name}_loss": term for name, term in zip(names, terms.unbind(), strict=True)}
