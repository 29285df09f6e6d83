"""Images at a tower's own size, by open_clip's three resize modes.

Where a configuration names its interpolation, as open_clip's all do once they are complete, bytes are resized
by Pillow, which open_clip's transforms use: what a model gets of an image file is, to the bit, what it was
trained with and is evaluated with elsewhere. Without a name, and for what has fractions already or lies on a
GPU, torch resizes; it does not round to bytes after each axis, and differs by up to 2 of 255.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def fit(images: Tensor, size: tuple[int, int], preprocess_cfg: Mapping[str, Any]) -> Tensor:
    """Bring images to a size.

    The modes are open_clip's: "squash" scales each axis by itself; "shortest" scales until the image covers
    the target and cuts what stands out at the sides; "longest" scales until it lies within and fills up with
    ``fill_color``.

    Parameters
    ----------
    images : Tensor, shape (N, 3, h, w)
        uint8, or floating point in [0, 1].
    size : tuple of int
        Height and width.
    preprocess_cfg : mapping
        ``resize_mode`` ("squash" by default), ``interpolation`` ("bilinear" by default; "random" concerns
        training alone and is "bicubic" here, as in open_clip) and ``fill_color`` (0 by default, of 255).

    Returns
    -------
    Tensor, shape (N, 3, *size)
        Of the same dtype.
    """
    mode = preprocess_cfg.get("resize_mode", "squash")
    named = preprocess_cfg.get("interpolation")
    how = "bilinear" if named in (None, "bilinear") else "bicubic"
    if mode == "shortest" and size[0] != size[1]:
        how = "bicubic"  # open_clip does not hand its interpolation on to this one
    height, width = images.shape[-2:]
    scaled = _scaled_size((height, width), size, mode)
    # An image of the right size stays as it is, to the bit.
    if (height, width) != scaled:
        as_theirs = named is not None and images.dtype == torch.uint8 and images.device.type == "cpu"
        images = _by_pillow(images, scaled, how) if as_theirs else _by_torch(images, scaled, how)
    if mode == "longest":
        # After scaling, so that the interpolation does not mix the image with its frame.
        fill = preprocess_cfg.get("fill_color", 0)
        images = _pad(images, size, fill if images.dtype == torch.uint8 else fill / 255)
    return _crop(images, size)


def _by_pillow(images: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """Bytes from bytes: Pillow rounds after each axis, as open_clip's transforms do."""
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    scaled = [Image.fromarray(image).resize(size[::-1], _PILLOW[how]) for image in pixels]
    # An empty batch has no image to take the shape from.
    rows = np.stack([np.asarray(image) for image in scaled]) if scaled else np.empty((0, *size, 3), np.uint8)
    return torch.from_numpy(rows).permute(0, 3, 1, 2)


def _by_torch(images: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """Fractions; antialiased as Pillow is, for else a smaller image is made of few of the pixels."""
    fractions = images if images.is_floating_point() else images.float() / 255
    if size[1] == 1:
        # torch 2.14 gives every row of a column of width 1 the first row's value, on CPUs; of a row of
        # height 1 it is right, and both axes are treated alike.
        turned = fractions.mT.contiguous()
        fractions = F.interpolate(turned, size[::-1], mode=how, antialias=True).mT
    else:
        fractions = F.interpolate(fractions, size, mode=how, antialias=True)
    # A cubic overshoots at edges; bytes, on which open_clip works, cannot.
    return fractions.clamp(0, 1) if how == "bicubic" else fractions


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
