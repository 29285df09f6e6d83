r"""The terms of the losses, one function each.

Throughout, image features and text features are the two sides of a batch of pairs, shape (B, D); ``s`` is
the similarity of a :class:`~riemann_unlearn.losses.similarity.Similarity`; a *forget* pair is one whose
``forget`` entry is True and all others are *retain* pairs. A term over no pairs is 0, with gradient 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riemann_unlearn.geometry import tangent
from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.losses.similarity import Similarity
from riemann_unlearn.ops.calibration import mean_over


def similarities(
    image_features: Tensor, text_features: Tensor, geometry: Similarity, c: Curvature | None
) -> Tensor:
    """s(i_a, t_b) for all a and b, shape (B, B), with the matched pairs accurate.

    A matrix product cannot resolve the distance of a near pair, and the matched pairs become near, so the
    diagonal comes from the elementwise formula.
    """
    pairwise = geometry.pairwise(image_features, text_features, c)
    matched = geometry.matched(image_features, text_features, c)
    return torch.diagonal_scatter(pairwise, matched.to(pairwise.dtype))


def contrastive(
    s: Tensor,
    logit_scale: Curvature,
    pairs: Tensor | None = None,
    caption_ids: Tensor | None = None,
) -> Tensor:
    r"""Symmetric InfoNCE over ``pairs``.

    .. math::
        L_{con} = \tfrac12 \operatorname{mean}_a \left[
        -\log\frac{e^{τ s_{aa}}}{\sum_b e^{τ s_{ab}}} -\log\frac{e^{τ s_{aa}}}{\sum_b e^{τ s_{ba}}} \right]

    Parameters
    ----------
    s : Tensor, shape (B, B)
        Similarities, images in rows.
    logit_scale : float or Tensor
        τ.
    pairs : Tensor, shape (B,), optional
        bool; the pairs that take part. All by default.
    caption_ids : Tensor, shape (B,), optional
        Integers; pairs with equal ids mean the same and are not negatives of each other.

    Examples
    --------
    >>> import torch
    >>> contrastive(torch.zeros(4, 4), logit_scale=1.0)       # nothing known: log 4
    tensor(1.3863)
    """
    ignored = torch.zeros_like(s, dtype=torch.bool)
    if caption_ids is not None:
        ignored = caption_ids[:, None] == caption_ids[None, :]
    if pairs is not None:
        ignored = ignored | ~(pairs[:, None] & pairs[None, :])
    # Each pair keeps itself, so that a row outside ``pairs`` has a finite (and unused) loss.
    ignored = ignored & ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    logits = (logit_scale * s).masked_fill(ignored, -math.inf)
    own = logits.diagonal()
    per_pair = (logits.logsumexp(1) + logits.logsumexp(0)) / 2 - own
    return mean_over(per_pair, pairs)


def entailment(
    image_features: Tensor,
    text_features: Tensor,
    c: Curvature,
    pairs: Tensor | None = None,
    min_radius: float = 0.1,
) -> Tensor:
    r"""How far images lie outside their captions' cones, in radians.

    :math:`L_{ent} = \operatorname{mean} \max(0, \mathrm{ext}(t, i) - \mathrm{aper}(t))` (MERU, equation 8).

    Parameters
    ----------
    image_features, text_features : Tensor, shape (B, D)
        Tangent vectors at the origin.
    c : float or Tensor
        Curvature magnitude.
    pairs : Tensor, shape (B,), optional
        bool; the pairs that take part.
    min_radius : float
        K of :func:`riemann_unlearn.geometry.tangent.half_aperture`.
    """
    outside = _outside(image_features, text_features, c, min_radius)
    return mean_over(outside.clamp(min=0), pairs)


def cone_exit(
    image_features: Tensor,
    text_features: Tensor,
    c: Curvature,
    forget: Tensor,
    min_radius: float = 0.1,
) -> Tensor:
    r"""How deep forget images still lie inside their captions' cones, in radians.

    :math:`L_{out} = \operatorname{mean}_U \max(0, \mathrm{aper}(t) - \mathrm{ext}(t, i))`, HAC's entailment
    calibration. Parameters as for :func:`entailment`.
    """
    outside = _outside(image_features, text_features, c, min_radius)
    return mean_over((-outside).clamp(min=0), forget)


def negative_alignment(s: Tensor, forget: Tensor, caption_ids: Tensor | None = None) -> Tensor:
    r"""Pull mismatched forget pairs together: :math:`-\operatorname{mean}_{a \ne b \in U} s_{ab}`.

    Alignment Calibration's negative term (arXiv 2406.03603). Reconstruction: pairs with equal
    ``caption_ids`` are matched and take no part.
    """
    chosen = forget[:, None] & forget[None, :]
    same = torch.eye(len(s), dtype=torch.bool, device=s.device)
    if caption_ids is not None:
        same = same | (caption_ids[:, None] == caption_ids[None, :])
    return -mean_over(s, chosen & ~same)


def positive_alignment(s: Tensor, forget: Tensor) -> Tensor:
    r"""Push matched forget pairs apart: :math:`\operatorname{mean}_{a \in U} s_{aa}`.

    Alignment Calibration's positive term (arXiv 2406.03603).
    """
    return mean_over(s.diagonal(), forget)


def performance(s: Tensor, logit_scale: Curvature, forget: Tensor) -> Tensor:
    r"""Keep forget pairs from crowding the retained ones.

    :math:`L_{perf} = \tfrac12 \operatorname{mean}_{a \in U} [\log \sum_b e^{τ s_{ab}} + \log \sum_b
    e^{τ s_{ba}}]`: the denominators of the contrastive loss, which Alignment Calibration keeps for the
    forget pairs when it drops their numerators.

    Reconstruction: the sums run over the whole batch R ∪ U, the pair itself and captions that mean the
    same included, as in a contrastive loss over a batch of both kinds; so the forget pairs stay spread
    among the retain pairs, not only among themselves.
    """
    logits = logit_scale * s
    return mean_over((logits.logsumexp(1) + logits.logsumexp(0)) / 2, forget)


def norm_regularization(
    image_features: Tensor,
    text_features: Tensor,
    c: Curvature,
    forget: Tensor,
    target: str | float = "retain",
) -> Tensor:
    r"""Hold the radii of forget pairs: :math:`\operatorname{mean}_U (r - r^*)^2`, :math:`r = \sqrt c|v|`.

    Without it the positive term, which has no lower bound, drives the radii to infinity.

    Parameters
    ----------
    image_features, text_features : Tensor, shape (B, D)
        Tangent vectors at the origin.
    c : float or Tensor
        Curvature magnitude.
    forget : Tensor, shape (B,)
        bool.
    target : "retain", "origin" or float
        r*: (reconstruction) the mean radius of the retain pairs in the batch for each modality, through
        which no gradient flows; 0; or a number. In a batch without retain pairs "retain" has no mean, and
        the term is 0.
    """
    chosen = forget & (~forget).any() if target == "retain" else forget
    total = image_features.new_zeros(())
    root = c.sqrt() if isinstance(c, Tensor) else math.sqrt(c)
    for features in (image_features, text_features):
        radius = root * tangent.dist0(features, c)
        if target == "retain":
            goal: Curvature = mean_over(radius, ~forget).detach()
        elif target == "origin":
            goal = 0.0
        elif isinstance(target, str):
            raise ValueError(f"target must be 'retain', 'origin' or a number, got {target!r}")
        else:
            goal = target
        total = total + mean_over((radius - goal).square(), chosen) / 2
    return total


def _outside(image_features: Tensor, text_features: Tensor, c: Curvature, min_radius: float) -> Tensor:
    """ext(t, i) - aper(t), positive outside the cone."""
    angle = tangent.exterior_angle(text_features, image_features, c)
    return angle - tangent.half_aperture(text_features, c, min_radius)
