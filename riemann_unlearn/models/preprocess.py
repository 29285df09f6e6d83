"""Images at a tower's own size, by open_clip's three resize modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def fit(images: Tensor, size: tuple[int, int], preprocess_cfg: Mapping[str, Any]) -> Tensor:
    """Bring images in [0, 1] to a size.

    The modes are open_clip's: "squash" scales each axis by itself; "shortest" scales until the image covers
    the target and cuts what stands out at the sides; "longest" scales until it lies within and fills up with
    ``fill_color``.

    Parameters
    ----------
    images : Tensor, shape (N, 3, h, w)
        Floating point.
    size : tuple of int
        Height and width.
    preprocess_cfg : mapping
        ``resize_mode`` ("squash" by default), ``interpolation`` ("bilinear" by default; "random" concerns
        training alone and is "bicubic" here, as in open_clip) and ``fill_color`` (0 by default, of 255).

    Returns
    -------
    Tensor, shape (N, 3, *size)
    """
    mode = preprocess_cfg.get("resize_mode", "squash")
    interpolation = preprocess_cfg.get("interpolation", "bilinear")
    height, width = images.shape[-2:]
    scaled = _scaled_size((height, width), size, mode)
    # An image of the right size stays as it is, to the bit.
    if (height, width) != scaled:
        # Antialiased below, as PIL does and so open_clip: else a smaller image is made of few of the pixels.
        how = "bilinear" if interpolation == "bilinear" else "bicubic"
        if scaled[1] == 1:
            # torch 2.14 gives every row of a column of width 1 the first row's value, on CPUs; of a row of
            # height 1 it is right, and both axes are treated alike.
            images = F.interpolate(images.mT.contiguous(), scaled[::-1], mode=how, antialias=True).mT
        else:
            images = F.interpolate(images, scaled, mode=how, antialias=True)
        if how == "bicubic":  # a cubic overshoots at edges; bytes, on which open_clip works, cannot
            images = images.clamp(0, 1)
    if mode == "longest":
        # After scaling, so that the interpolation does not mix the image with its frame.
        images = _pad(images, size, preprocess_cfg.get("fill_color", 0) / 255)
    return _crop(images, size)


def _scaled_size(source: tuple[int, int], size: tuple[int, int], mode: str) -> tuple[int, int]:
    """Height and width before cutting and filling up."""
    if mode == "squash":
        return size
    height, width = source
    ratios = height / size[0], width / size[1]
    ratio = max(ratios) if mode == "longest" else min(ratios)
    if mode == "shortest" and size[0] == size[1]:
        # torchvision's Resize, which open_clip takes for squares, rounds the longer side down.
        short = size[0]
        if height <= width:
            return short, int(short * width / height)
        return int(short * height / width), short
    # round takes halves to the even number, and so does open_clip's ResizeKeepRatio. At least 1: a strip
    # long enough would have no height left.
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _pad(images: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    missing_h, missing_w = (max(0, n - m) for n, m in zip(size, images.shape[-2:], strict=True))
    # left, right, top, bottom; the odd pixel goes right and below
    sides = (missing_w // 2, (missing_w + 1) // 2, missing_h // 2, (missing_h + 1) // 2)
    return F.pad(images, sides, value=fill)


def _crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    # Halves to the even number, as torchvision's CenterCrop has them. Where nothing stands out both are 0.
    top, left = (round((m - n) / 2) for n, m in zip(size, images.shape[-2:], strict=True))
    return images[..., top : top + size[0], left : left + size[1]]
