"""CLIP and MERU on open_clip towers, their checkpoints, and the bundled models."""

from riemann_unlearn.models.checkpoint import (
    ModelInfo,
    create_model,
    list_models,
    load,
    save_model,
)
from riemann_unlearn.models.encoder import CLIP, MERU, DualEncoder

__all__ = [
    "CLIP",
    "MERU",
    "DualEncoder",
    "ModelInfo",
    "create_model",
    "list_models",
    "load",
    "save_model",
]
