"""Losses for training and unlearning contrastive models; needs only torch and geoopt.

``functional`` has each term once, as a function of what a space finds in a batch; ``contrastive`` and
``calibration`` have the losses, sums of weighted terms; ``base`` has what they share.
"""

from riemann_unlearn.losses import functional
from riemann_unlearn.losses.base import PairLoss, Pairs, loss_inputs
from riemann_unlearn.losses.calibration import AlignmentCalibration, HyperbolicAlignmentCalibration
from riemann_unlearn.losses.contrastive import ContrastiveLoss, EntailmentLoss

__all__ = [
    "AlignmentCalibration",
    "ContrastiveLoss",
    "EntailmentLoss",
    "HyperbolicAlignmentCalibration",
    "PairLoss",
    "Pairs",
    "functional",
    "loss_inputs",
]
