r"""The terms of the losses, one function each: the one place where each is defined.

They are functions of what a space finds in a batch of pairs, vectors of the batch's length:

- ``statistics``, :class:`riemann_unlearn.ops.Contrastive`: the similarity s of matched pairs, the logarithms
  of the normalizers of rows and columns, and the mean similarity of mismatched forget pairs
  (:meth:`Space.statistics <riemann_unlearn.spaces.Space.statistics>`, or, from a matrix of similarities,
  :func:`riemann_unlearn.ops.from_similarities`);
- ``cones``, :class:`riemann_unlearn.ops.Cones`: how far each image lies outside its caption's cone
  (:meth:`Space.cones <riemann_unlearn.spaces.Space.cones>`);
- radii, distances from the origin in units of the curvature radius.

A *forget* pair is one whose ``forget`` entry is True and all others are *retain* pairs. A term over no pairs
is 0, with gradient 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.ops import Cones, Contrastive


def mean_over(values: Tensor, chosen: Tensor | None) -> Tensor:
    """Mean over the chosen entries, 0 over none; without a host synchronization."""
    if chosen is None:
        # The mean of nothing is NaN. The sum of nothing is 0, and still hangs on the graph.
        return values.mean() if values.numel() else values.sum()
    # What is not chosen may be infinite, and 0·inf would be NaN: it is left out, not multiplied by 0.
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)


def contrastive(
    statistics: Contrastive,
    logit_scale: Curvature,
    logit_bias: Curvature = 0.0,
    pairs: Tensor | None = None,
) -> Tensor:
    r"""L_con, the contrastive loss of ``pairs``: InfoNCE in a softmax family, SigLIP's in a sigmoid one.

    .. math::
        L_{con} = \operatorname{mean}_a \tfrac12 (\text{rows}_a + \text{columns}_a) - (τ s_{aa} + \text{bias})

    With rows :math:`\log\sum_b e^{τ s_{ab}}` and columns likewise that is the symmetric InfoNCE
    :math:`\tfrac12 \operatorname{mean}_a [-\log\frac{e^{τ s_{aa}}}{\sum_b e^{τ s_{ab}}} - \log\frac{e^{τ
    s_{aa}}}{\sum_b e^{τ s_{ba}}}]`.

    Parameters
    ----------
    statistics : Contrastive
    logit_scale, logit_bias : float or Tensor
        τ, not its logarithm, and what is added to each logit.
    pairs : Tensor, shape (B,), optional
        bool; the pairs that take part. All by default.

    Examples
    --------
    >>> import torch
    >>> from riemann_unlearn.ops import from_similarities
    >>> contrastive(from_similarities(torch.zeros(4, 4), 1.0), logit_scale=1.0)     # nothing known: log 4
    tensor(1.3863)
    """
    # Rows and columns hold the bias as well. It cancels where they are log-sum-exp, which shifts by as much,
    # and not where they are sums of softplus, which do not.
    own = logit_scale * statistics.matched + logit_bias
    return mean_over((statistics.rows + statistics.columns) / 2 - own, pairs)


def negative_alignment(
    statistics: Contrastive, logit_scale: Curvature, logit_bias: Curvature = 0.0
) -> Tensor:
    r"""L_neg, pulls mismatched forget pairs together: :math:`-\operatorname{mean}_{a \ne b \in U} l_{ab}`.

    With the logits :math:`l_{ab} = τ s_{ab} + \text{bias}`. Alignment Calibration's negative term (arXiv
    2406.03603). With it and :func:`performance` at one weight a forget row costs what InfoNCE with a random
    other forget sample as its positive costs in the mean, as in the authors' (unimodal) code:

    .. math:: \operatorname{mean}_{a \ne b \in U} \Bigl[-\log \frac{e^{l_{ab}}}{\sum_k e^{l_{ak}}}\Bigr] \ge 0

    Reconstruction: pairs with equal caption ids are matched and take no part; without mismatched forget
    pairs the term is 0.

    Parameters
    ----------
    statistics : Contrastive
    logit_scale, logit_bias : float or Tensor
        τ, not its logarithm, and what is added to each logit.

    Examples
    --------
    >>> import torch
    >>> from riemann_unlearn.ops import from_similarities
    >>> forget = torch.ones(2, dtype=torch.bool)
    >>> negative_alignment(from_similarities(-torch.ones(2, 2), 3.0, forget=forget), logit_scale=3.0)
    tensor(3.)
    """
    # The mean over no pairs is 0; the bias of a logit that is not there must not make it another number.
    return -torch.where(statistics.pairs > 0, logit_scale * statistics.negative + logit_bias, 0.0)


def positive_alignment(
    statistics: Contrastive, forget: Tensor, logit_scale: Curvature, logit_bias: Curvature = 0.0
) -> Tensor:
    r"""L_pos, pushes matched forget pairs apart: :math:`\operatorname{mean}_{a \in U} l_{aa}`, in logits.

    Alignment Calibration's positive term (arXiv 2406.03603). Reconstruction: its unit, which is that of
    the other terms; the authors' code has similarities here, and β = 0 in its scripts.

    Parameters
    ----------
    statistics : Contrastive
    forget : Tensor, shape (B,)
        bool.
    logit_scale, logit_bias : float or Tensor
        τ, not its logarithm, and what is added to each logit.
    """
    return mean_over(logit_scale * statistics.matched + logit_bias, forget)


def performance(statistics: Contrastive, forget: Tensor) -> Tensor:
    r"""L_perf, keeps forget pairs from crowding the retained ones.

    :math:`L_{perf} = \tfrac12 \operatorname{mean}_{a \in U} [\log\sum_b e^{l_{ab}} + \log\sum_b e^{l_{ba}}]`:
    the denominators of the contrastive loss, which Alignment Calibration keeps for the forget pairs when it
    drops their numerators.

    Reconstruction: the sums run over the whole batch R ∪ U, the pair itself and captions that mean the
    same included, as in a contrastive loss over a batch of both kinds; so the forget pairs stay spread
    among the retain pairs, not only among themselves. And where :func:`negative_alignment` has no pair, as at
    a level where all that is forgotten has one caption, the term is 0: a denominator without a numerator is
    no InfoNCE, and on a space without a lower bound of similarities it has none either.

    Parameters
    ----------
    statistics : Contrastive
    forget : Tensor, shape (B,)
        bool.
    """
    # Two captions among the forgotten suffice for each of them to have a mismatched one: all rows or none.
    term = mean_over((statistics.rows + statistics.columns) / 2, forget)
    return torch.where(statistics.pairs > 0, term, 0.0)


def entailment(cones: Cones, pairs: Tensor | None = None) -> Tensor:
    r"""L_ent, how far images lie outside their captions' cones, in radians.

    :math:`L_{ent} = \operatorname{mean} \max(0, \mathrm{ext}(t, i) - \mathrm{aper}(t))` (MERU, equation 8).

    Parameters
    ----------
    cones : Cones
        Captions are the broader side, images the narrower.
    pairs : Tensor, shape (B,), optional
        bool; the pairs that take part.
    """
    # outside is ext - aper, negative within the cone: there an image costs nothing, however deep it lies.
    return mean_over(cones.outside.clamp(min=0), pairs)


def cone_exit(cones: Cones, forget: Tensor) -> Tensor:
    r"""L_out, how deep forget images still lie inside their captions' cones, in radians.

    :math:`L_{out} = \operatorname{mean}_U \max(0, \mathrm{aper}(t) - \mathrm{ext}(t, i))`, HAC's entailment
    calibration. Parameters as for :func:`entailment`.
    """
    # Clamped, so that an image that is out is let be: else the term would drive it on to the far side.
    return mean_over((-cones.outside).clamp(min=0), forget)


def norm_regularization(radii: Sequence[Tensor], forget: Tensor, target: str | float = "retain") -> Tensor:
    r"""L_norm, holds the radii of forget pairs: :math:`\operatorname{mean}_U (r - r^*)^2`.

    Here r is a distance from the origin in units of the curvature radius, :math:`\sqrt c|v|`. Without the
    term the positive one, which has no lower bound, drives the radii to infinity.

    Parameters
    ----------
    radii : sequence of Tensor, shape (B,) each
        Of each modality, images and texts; the term is the mean over them.
    forget : Tensor, shape (B,)
        bool.
    target : "retain", "origin" or float
        r*: (reconstruction) the mean radius of the retain pairs in the batch for each modality, through
        which no gradient flows; 0; or a number. In a batch without retain pairs "retain" has no mean, and
        the term is 0.

    Raises
    ------
    ValueError
        For a target that is none of these.
    """
    if isinstance(target, str) and target not in ("retain", "origin"):
        raise ValueError(f"target must be 'retain', 'origin' or a number, got {target!r}")
    off, held = torch.stack(tuple(radii)), forget
    if target == "retain":
        retain = ~forget
        # A tensor and no if: to ask whether there are any would wait for the device.
        held = forget & retain.any()
        # As in mean_over: a forget pair whose radius overflowed must not reach the mean as 0·inf.
        mean = torch.where(retain, off, 0.0).sum(-1, keepdim=True) / retain.sum().clamp(min=1)
        # Without the detach the term would be made small by moving the retained instead.
        off = off - mean.detach()
    # For "origin" r* is 0, and the radii are the differences already.
    elif not isinstance(target, str):
        off = off - target
    # Squares first, then the mean over the modalities: an image too far out does not make up for a text
    # too far in.
    return mean_over(off.square().mean(0), held)
