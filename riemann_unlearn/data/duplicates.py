"""Images that look the same: one copy to be forgotten and another retained would undo each other.

Two images are compared by their thumbnails, the mean colours on a grid of 8 by 8. What survives there is what
survives being saved again, at another size or quality; a crop, a turn or a mirror image does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_unlearn.data.images import THUMBNAIL, EncodedImages, thumbnails
from riemann_unlearn.data.samples import Images, Rows

TOLERANCE = 4.0
"""Root mean square, of 255, by which thumbnails of one picture may differ: saved smaller and worse, 3.6."""
CONTRAST = 0.1
"""And of the picture's own contrast: of flat pictures, a small difference is all there is."""
_NUMBERS = 3 * THUMBNAIL * THUMBNAIL
_CHUNK = 512


def thumbnails_of(images: Images, rows: Tensor) -> Tensor:
    """Thumbnails of the images at ``rows``, uint8, shape (N, 3, THUMBNAIL, THUMBNAIL)."""
    if isinstance(images, Rows):
        return thumbnails_of(images.images, images.rows[rows])
    if isinstance(images, EncodedImages) and images.thumbnails is not None:
        return images.thumbnails[rows]
    parts = [torch.empty(0, 3, THUMBNAIL, THUMBNAIL, dtype=torch.uint8)]
    for chunk in torch.split(rows, _CHUNK):
        some = images[chunk]
        # One by one where sizes differ.
        parts += (
            [thumbnails(some)] if isinstance(some, Tensor) else [thumbnails(image[None]) for image in some]
        )
    return torch.cat(parts)


def look_alikes(images: Images, gone: Tensor) -> list[tuple[int, int]]:
    """Retained images that look like one to be forgotten: the row of each, and that of the most like it.

    Parameters
    ----------
    images : Images
    gone : Tensor, shape (N,)
        bool: which are to be forgotten.

    Examples
    --------
    >>> images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    >>> images[3] = images[0]
    >>> look_alikes(images, torch.tensor([True, False, False, False]))
    [(3, 0)]
    """
    sides = [mask.nonzero()[:, 0] for mask in (gone, ~gone)]
    # Centred, so that the squares below are small: their rounding then is less than 1 of 255².
    vectors = [thumbnails_of(images, rows).flatten(1).float() - 128 for rows in sides]
    # In order of brightness. The means of two images differ by no more than their root mean square, so that
    # each chunk has to be compared with the retained ones of about its brightness alone.
    order = [vector.mean(1).argsort() for vector in vectors]
    forgotten, retained = (vector[i] for vector, i in zip(vectors, order, strict=True))
    brightness = retained.mean(1)
    best = brightness.new_full((len(retained),), torch.inf)
    partner = torch.zeros(len(retained), dtype=torch.long)
    for start in range(0, len(forgotten), _CHUNK):
        chunk = forgotten[start : start + _CHUNK]
        ends = chunk[[0, -1]].mean(1) + chunk.new_tensor([-TOLERANCE, TOLERANCE])
        low, high = torch.searchsorted(brightness, ends).tolist()
        near = retained[low:high]
        # |a - b|² = |a|² + |b|² - 2a·b; below 1 it is rounding, and the thumbnails are equal.
        squares = chunk.square().sum(1)[:, None] + near.square().sum(1) - 2 * chunk @ near.mT
        allowed = torch.clamp((CONTRAST * chunk.std(1, correction=0)).square(), max=TOLERANCE**2) * _NUMBERS
        squares = squares.masked_fill(squares > allowed.clamp(min=1)[:, None], torch.inf)
        nearest, which = squares.min(0) if len(near) else (best[low:high], partner[low:high])
        closer = nearest < best[low:high]
        best[low:high][closer] = nearest[closer]
        partner[low:high][closer] = start + which[closer]
    rows = best.isfinite().nonzero()[:, 0]
    pairs = zip(sides[1][order[1][rows]].tolist(), sides[0][order[0][partner[rows]]].tolist(), strict=True)
    return sorted(pairs)
