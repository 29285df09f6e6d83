"""Training: the loop that everything which learns shares, and training a model from scratch."""

from riemann_unlearn.config import TrainConfig
from riemann_unlearn.training.callbacks import Checkpoint, Clamp, History, ProgressBar, Watch
from riemann_unlearn.training.driver import Batches, Callback, Driver, RandomBatches, as_device
from riemann_unlearn.training.towers import Towers, prepare_towers
from riemann_unlearn.training.train import EpochBatches, train, training_loss

__all__ = [
    "Batches",
    "Callback",
    "Checkpoint",
    "Clamp",
    "Driver",
    "EpochBatches",
    "History",
    "ProgressBar",
    "RandomBatches",
    "Towers",
    "TrainConfig",
    "Watch",
    "as_device",
    "prepare_towers",
    "train",
    "training_loss",
]
