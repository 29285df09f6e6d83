"""Losses for training and unlearning contrastive models; needs only torch and geoopt."""

from riemann_unlearn.losses import functional
from riemann_unlearn.losses.calibration import AlignmentCalibration, HyperbolicAlignmentCalibration
from riemann_unlearn.losses.contrastive import ContrastiveLoss, EntailmentLoss

__all__ = [
    "AlignmentCalibration",
    "ContrastiveLoss",
    "EntailmentLoss",
    "HyperbolicAlignmentCalibration",
    "functional",
]
