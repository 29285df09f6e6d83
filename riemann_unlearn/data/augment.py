"""Random views of a batch of images: an affine map and a change of colour, both batched.

Two pictures of one thing differ in size, placement and palette, and not in what they show or in which
direction it faces. So the views shift, scale, turn a little and recolour, and never mirror ("right arrow"
would become "left arrow").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROTATION = math.radians(8)
LOG_SCALE_RANGE = (math.log(0.85), math.log(1.15))
"""Magnification of the image; 1 leaves it as it is."""
LOG_ASPECT = math.log(1.1)
MAX_SHIFT = 0.06
"""Largest shift along an axis, as a fraction of the image's side."""
COLOUR_STRENGTH = 0.2
"""Largest relative change of brightness, contrast and saturation."""
TINT_STRENGTH = 0.05
"""Largest relative change of one channel: small, for an orange book is not a yellow one."""


def random_view(
    images: Tensor | Iterable[Tensor],
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    fit: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One random view of every image, resampled to ``size``.

    Parameters
    ----------
    images : Tensor, shape (N, 3, H, W), or iterable of Tensor, each of shape (3, h, w)
        uint8, or floating point in [0, 1].
    size : tuple of int
        Height and width of the result.
    generator : torch.Generator
        Source of all randomness.
    fit : callable, optional
        Brings images of shape (n, 3, h, w) to ``size``, as the model that will see them does in evaluation;
        by default each axis is scaled by itself. It is asked for those that are of other proportions, where
        models differ, or larger, where a view taken directly would alias; so each view is of the image alone,
        whatever else is in the batch.

    Returns
    -------
    Tensor, shape (N, 3, *size)
        float32 in [0, 1]; what lies outside the original is white.

    Examples
    --------
    >>> import torch
    >>> images = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    >>> random_view(images, (64, 64), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 64, 64])
    """
    # One by one where sizes differ: how an image is fitted must not depend on what else is in the batch.
    if isinstance(images, Tensor):
        parts = [_fitted(images, size, fit)]
    else:
        parts = [_fitted(image[None], size, fit) for image in images]
    n, device = sum(map(len, parts)), parts[0].device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        # float32, whatever torch's default dtype is: that of the images, and the same draws for everyone.
        drawn = torch.rand(n, *shape, generator=generator, dtype=torch.float32)
        return (low + (high - low) * drawn).to(device)

    # What a seed gives depends on the order of the draws from here on, and on the images' number alone.
    angle = uniform(-MAX_ROTATION, MAX_ROTATION)
    zoom, aspect = uniform(*LOG_SCALE_RANGE), uniform(-LOG_ASPECT / 2, LOG_ASPECT / 2)
    # affine_grid maps output coordinates to input ones, so a magnification divides.
    # The aspect goes half to either axis, with opposite signs: the area is then the zoom's alone.
    width, height = torch.exp(aspect - zoom), torch.exp(-aspect - zoom)
    # R(angle) · diag(width, height): the stretch is along the view's own axes, whatever the angle.
    theta = torch.stack(
        [
            torch.stack([angle.cos() * width, -angle.sin() * height], -1),
            torch.stack([angle.sin() * width, angle.cos() * height], -1),
        ],
        1,
    )
    shift = uniform(-2 * MAX_SHIFT, 2 * MAX_SHIFT, 2, 1)  # grid coordinates span [-1, 1]
    grid = F.affine_grid(torch.cat([theta, shift], -1), [n, 3, *size], align_corners=False)
    # grid_sample pads with 0; resample 1 - image so that the padding is white.
    views = 1 - torch.cat(
        [
            F.grid_sample(1 - part, some, mode="bilinear", align_corners=False)
            for part, some in zip(parts, torch.split(grid, [len(part) for part in parts]), strict=True)
        ]
    )

    # One factor an image (the tint: one a channel), the same at every pixel.
    strength = COLOUR_STRENGTH
    gain = uniform(1 - strength, 1 + strength, 1, 1, 1)
    contrast = uniform(1 - strength, 1 + strength, 1, 1, 1)
    saturation = uniform(1 - strength, 1 + strength, 1, 1, 1)
    tint = uniform(1 - TINT_STRENGTH, 1 + TINT_STRENGTH, 3, 1, 1)
    # Values may leave [0, 1] on the way and come back; clamping once, at the end, keeps what is between.
    grey = views.mean(1, keepdim=True)
    views = (grey + saturation * (views - grey)) * tint
    # Of each image by itself: a view must not depend on its neighbours in the batch.
    centre = views.mean((1, 2, 3), keepdim=True)
    return ((centre + contrast * (views - centre)) * gain).clamp(0, 1)


def _fitted(images: Tensor, size: tuple[int, int], fit: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Images of one size in [0, 1], brought to ``size`` unless they fit and are of its proportions."""
    height, width = images.shape[-2:]
    # Proportions compared by whole numbers, crosswise: a quotient would be rounded.
    if height <= size[0] and width <= size[1] and height * size[1] == width * size[0]:
        return _fractions(images)
    if fit is not None:
        return fit(images).to(images.device)
    # Without antialias a large image would lose the lines that fall between the samples.
    return F.interpolate(_fractions(images), size, mode="bilinear", antialias=True)


def _fractions(images: Tensor) -> Tensor:
    """Channels in [0, 1] rather than as bytes."""
    return images if images.is_floating_point() else images.float() / 255
