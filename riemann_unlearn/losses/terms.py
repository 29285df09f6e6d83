"""The terms that models are trained with, from what the ops found, without the matrix of similarities.

:mod:`riemann_unlearn.losses.functional` says what each of them is; those of calibration are in
:mod:`riemann_unlearn.ops.calibration`.
"""

from __future__ import annotations

from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature
from riemann_unlearn.ops import Cones, Contrastive
from riemann_unlearn.ops.calibration import mean_over


def contrastive(found: Contrastive, logit_scale: Curvature) -> Tensor:
    """L_con."""
    return mean_over((found.rows + found.columns) / 2 - logit_scale * found.matched, None)


def entailment(found: Cones) -> Tensor:
    """L_ent."""
    return mean_over(found.outside.clamp(min=0), None)
