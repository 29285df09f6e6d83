"""What every loss asks of its arguments, checked once at the door."""

from __future__ import annotations

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
