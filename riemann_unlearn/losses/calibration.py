r"""Calibration losses: AC in any geometry, HAC in a hyperbolic one.

HAC's authors published no code, AC's that of its unimodal form; the forms here are a reconstruction, and
every choice made is named where it is made. Reconstruction, the units: all that is made of the logits
:math:`l_{ab} = τ s_{ab} + \text{bias}` is measured in logits, L_neg and L_pos as well as L_con and L_perf. So
it is in AC's code, where a forget row's loss is α times one InfoNCE whose positive is another random forget
sample: its numerator is L_neg, its denominator L_perf, α = γ between 0.4 and 2, and β = 0.

With α = γ the two together are at least 0. β has no such floor. Let all that is forgotten go a distance d
away from everything and from each other: L changes by τ(α - β - γ)d. So where similarities have no lower
bound, L has one just where :math:`α \ge β + γ`, and beyond that it is L_norm that holds the radii.
"""

from __future__ import annotations

import math
from typing import ClassVar

import geoopt
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.losses import functional
from riemann_unlearn.losses.base import PairLoss, Pairs, check_weights
from riemann_unlearn.spaces import Space


class AlignmentCalibration(PairLoss):
    r"""Alignment Calibration (Wang et al., arXiv 2406.03603).

    .. math::
        L = L_{con}(R) + ε\,(α L_{neg}(U) + β L_{pos}(U) + γ L_{perf}(U))

    with R the retain and U the forget pairs of the batch, logits :math:`l_{ab} = τ s_{ab} + \text{bias}` and

    .. math::
        L_{neg} = -\operatorname{mean}_{a \ne b \in U} l_{ab}, \quad
        L_{pos} = \operatorname{mean}_{a \in U} l_{aa}, \quad
        L_{perf} = \tfrac12 \operatorname{mean}_{a \in U}
        \Bigl[\log \sum_b e^{l_{ab}} + \log \sum_b e^{l_{ba}}\Bigr],

    those of :mod:`riemann_unlearn.losses.functional`. Reconstruction: L_con contrasts retain pairs among
    themselves; the sums of L_perf run over the whole batch.

    Parameters
    ----------
    alpha, beta, gamma : float
        Weights of the negative, the positive and the performance-preserving term, all in logits. The
        authors' code has α = γ.
    epsilon : float
        Weight of all three.
    space : Space, optional
        How features compare, if a call does not say it: by cosine, as in the paper, unless it gives a
        curvature magnitude ``c``, a ``logit_bias``, or a space.
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
        beta: float = 0.5,
        gamma: float = 0.5,
        *,
        epsilon: float = 1.0,
        space: Space | None = None,
        manifold: geoopt.Manifold | None = None,
        min_radius: float | None = None,
    ) -> None:
        super().__init__(space=space, manifold=manifold, min_radius=min_radius)
        check_weights(alpha=alpha, beta=beta, gamma=gamma, epsilon=epsilon)
        self.alpha, self.beta, self.gamma, self.epsilon = alpha, beta, gamma, epsilon

    def terms(self, pairs: Pairs) -> dict[str, Tensor]:
        """The four terms, weighted."""
        # One pass over all pairs serves the four of them.
        statistics, space = pairs.statistics, pairs.space
        # The normalizers of retain pairs run over retain pairs alone, so the mean over these is L_con of R by
        # itself. Those of forget pairs run over the whole batch, as L_perf wants them.
        contrast = functional.contrastive(statistics, space.scale, space.bias, pairs.retain)
        negative = functional.negative_alignment(statistics, space.scale, space.bias)
        positive = functional.positive_alignment(statistics, pairs.forget, space.scale, space.bias)
        performance = functional.performance(statistics, pairs.forget)
        return {
            "contrastive_loss": contrast,
            # Weighted here and not in the sum: what is logged adds up to what is minimized.
            "negative_alignment_loss": self.epsilon * self.alpha * negative,
            "positive_alignment_loss": self.epsilon * self.beta * positive,
            "performance_loss": self.epsilon * self.gamma * performance,
        }

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        forget_mask: Tensor,
        *,
        logit_scale: Curvature | None = None,
        logit_bias: Curvature | None = None,
        c: Curvature | None = None,
        space: Space | None = None,
        caption_ids: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a batch of forget and retain pairs.

        Parameters
        ----------
        image_features, text_features : Tensor, shape (B, D)
        forget_mask : Tensor, shape (B,)
            bool; True for the pairs to be forgotten. All or none may be True.
        logit_scale, logit_bias, c, space, caption_ids, output_dict
            As for :meth:`PairLoss.forward <riemann_unlearn.losses.base.PairLoss.forward>`, as are the errors.
        """
        chosen = self._space(space, logit_scale, logit_bias, c)
        return self._loss(image_features, text_features, chosen, forget_mask, caption_ids, output_dict)


class HyperbolicAlignmentCalibration(AlignmentCalibration):
    r"""Hyperbolic Alignment Calibration (arXiv 2503.15166).

    .. math::
        L = L_{con}(R) + λ L_{ent}(R) + ε\,(α L_{neg} + β L_{pos} + γ L_{perf} + ω L_{out} + η L_{norm})(U)

    Parameters
    ----------
    alpha, beta, gamma, omega, eta : float
        Weights of the negative, positive, performance-preserving, entailment-calibration and
        norm-regularization terms: the first three in logits, ω in radians, η in squared radii.
    epsilon : float
        Weight of all five.
    entailment_weight : float
        λ, the weight of the retain pairs' entailment; 0.2 as in MERU.
    target_radius : "retain", "origin" or float
        r* of :func:`riemann_unlearn.losses.functional.norm_regularization`.
    space : Space, optional
        How features compare, if a call does not say it; one with entailment cones.
    manifold : geoopt.Manifold, optional
        Features are points on it instead of tangent vectors at the origin; one that is hyperbolic.
    min_radius : float, optional
        K of the entailment cones; the space's own by default, which is MERU's 0.1 for a call with ``c``.

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

    needs_cones: ClassVar[bool] = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.5,
        omega: float = 1.0,
        eta: float = 1.0,
        *,
        epsilon: float = 1.0,
        entailment_weight: float = 0.2,
        target_radius: str | float = "retain",
        space: Space | None = None,
        manifold: geoopt.Manifold | None = None,
        min_radius: float | None = None,
    ) -> None:
        super().__init__(
            alpha, beta, gamma, epsilon=epsilon, space=space, manifold=manifold, min_radius=min_radius
        )
        # A negative weight would turn a term about, and L_norm would drive away the radii that it is to hold.
        check_weights(omega=omega, eta=eta, entailment_weight=entailment_weight)
        if isinstance(target_radius, str):
            if target_radius not in ("retain", "origin"):
                raise ValueError(
                    f"target_radius must be 'retain', 'origin' or a number, got {target_radius!r}"
                )
        elif not 0 <= target_radius < math.inf:
            raise ValueError(f"target_radius is a radius and must be at least 0, got {target_radius}")
        self.omega, self.eta = omega, eta
        self.entailment_weight, self.target_radius = entailment_weight, target_radius

    def terms(self, pairs: Pairs) -> dict[str, Tensor]:
        """Those of AC and the three that need cones, weighted."""
        cones, forget = pairs.cones, pairs.forget
        # The two are each other's mirror: retain images are drawn into the cones, forget images out of them.
        entailment = functional.entailment(cones, pairs.retain)
        cone_exit = functional.cone_exit(cones, forget)
        # Images lie in the cones of their captions, so they are the narrower side.
        radii = cones.narrow_radius, cones.broad_radius
        norm = functional.norm_regularization(radii, forget, self.target_radius)
        return {
            **super().terms(pairs),
            "entailment_loss": self.entailment_weight * entailment,
            "cone_exit_loss": self.epsilon * self.omega * cone_exit,
            "norm_loss": self.epsilon * self.eta * norm,
        }
