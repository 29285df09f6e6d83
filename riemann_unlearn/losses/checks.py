"""What every loss asks of its arguments, checked once at the door."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_batch(
    image_features: Tensor,
    text_features: Tensor,
    *,
    forget_mask: Tensor | None = None,
    caption_ids: Tensor | None = None,
) -> None:
    """Raise for features that are not a batch of pairs, or masks that do not belong to it."""
    for name, features in (("image_features", image_features), ("text_features", text_features)):
        if not features.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {features.dtype}")
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            "image_features and text_features must have the same shape (B, D), got "
            f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )
    batch = (len(image_features),)
    if forget_mask is not None and (forget_mask.dtype != torch.bool or forget_mask.shape != batch):
        raise ValueError(
            f"forget_mask must be a bool tensor of shape {batch}, got {forget_mask.dtype} of shape "
            f"{tuple(forget_mask.shape)}"
        )
    if caption_ids is not None and (caption_ids.is_floating_point() or caption_ids.shape != batch):
        raise ValueError(
            f"caption_ids must be an integer tensor of shape {batch}, got {caption_ids.dtype} of "
            f"shape {tuple(caption_ids.shape)}"
        )


def check_settings(*, min_radius: float, target_radius: str | float = "retain", **weights: float) -> None:
    """Raise ValueError for settings of a loss that no batch could be scored with."""
    if not 0 < min_radius < math.inf:
        raise ValueError(f"min_radius must be positive, got {min_radius}")
    if isinstance(target_radius, str):
        if target_radius not in ("retain", "origin"):
            raise ValueError(f"target_radius must be 'retain', 'origin' or a number, got {target_radius!r}")
    elif not 0 <= target_radius < math.inf:
        raise ValueError(f"target_radius is a radius and must be at least 0, got {target_radius}")
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} is a weight and must be finite and at least 0, got {weight}")
