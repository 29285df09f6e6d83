"""Training of CLIP and MERU from scratch."""

from riemann_unlearn.training.train import TrainConfig, train

__all__ = ["TrainConfig", "train"]
