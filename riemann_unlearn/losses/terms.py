"""The terms of the losses from what the ops found: a few operations on vectors of the batch's length.

They are the terms of :mod:`riemann_unlearn.losses.functional`, which says what each of them is, without the
matrix of similarities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.losses.functional import mean_over
from riemann_unlearn.ops import Cones, Contrastive


def contrastive(found: Contrastive, logit_scale: Curvature, pairs: Tensor | None = None) -> Tensor:
    """L_con over ``pairs``, none of which was a forget pair of the op."""
    return mean_over((found.rows + found.columns) / 2 - logit_scale * found.matched, pairs)


def positive_alignment(found: Contrastive, forget: Tensor) -> Tensor:
    """L_pos."""
    return mean_over(found.matched, forget)


def negative_alignment(found: Contrastive) -> Tensor:
    """L_neg of the op's forget pairs."""
    return -found.negative


def performance(found: Contrastive, forget: Tensor) -> Tensor:
    """L_perf, of the op's forget pairs."""
    return mean_over((found.rows + found.columns) / 2, forget)


def entailment(found: Cones, pairs: Tensor | None = None) -> Tensor:
    """L_ent."""
    return mean_over(found.outside.clamp(min=0), pairs)


def cone_exit(found: Cones, forget: Tensor) -> Tensor:
    """L_out."""
    return mean_over((-found.outside).clamp(min=0), forget)


def norm_regularization(found: Cones, forget: Tensor, target: str | float) -> Tensor:
    """L_norm; ``target`` as for :func:`riemann_unlearn.losses.functional.norm_regularization`."""
    radii = torch.stack([found.image_radius, found.text_radius])
    if target == "retain":
        goal: Curvature = torch.stack([mean_over(r, ~forget) for r in radii]).detach()[:, None]
        forget = forget & (~forget).any()
    else:
        goal = 0.0 if target == "origin" else float(target)
    return mean_over((radii - goal).square().mean(0), forget)
