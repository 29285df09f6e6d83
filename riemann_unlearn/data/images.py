"""Encoded images, as a viewer shows them: decoded when asked for, each at its own size.

They stay where they are, in files of their own or within others, and are read again each time: of a set that
is larger than memory, memory holds the places.

A viewer turns a photograph as its EXIF says, lays transparency over a white page, shows the first frame of an
animation, and scales 16-bit grey to what the screen has. Colour profiles are not applied, as they are not by
the pipelines that CLIP and its kin were trained with.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

EXTENSIONS = ("webp", "png", "jpg", "jpeg", "gif", "bmp", "ppm", "pgm", "pbm")
"""File name extensions that are taken for images, the preferred ones first."""
FORMATS = ("WEBP", "PNG", "JPEG", "GIF", "BMP", "PPM")
"""Pillow's names of what may be in them. It goes by the content, whatever the file is called, and would hand
PostScript to an interpreter."""
THUMBNAIL = 8
"""Side of what is kept of an image to tell whether another looks the same."""
_GLANCE = (4 * THUMBNAIL, 4 * THUMBNAIL)
"""Size that a JPEG is decoded to where a look is enough: its coarser coefficients alone."""
_ORIENTATION = 0x0112
"""EXIF's tag that says how a camera was held; 1 is upright."""
# Upright, and numbers that EXIF does not have, are not here: such an image stays as it is.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(ValueError):
    """Bytes that are no image, or a broken one; the message says why."""


class Slice(NamedTuple):
    """A part of a file: where in a tar an image's bytes are."""

    path: str
    start: int
    size: int


Encoded: TypeAlias = bytes | str | Slice
"""An image's bytes, the path of its file, or where in a file they are."""


def read(encoded: Encoded) -> bytes:
    """An encoded image's bytes, from wherever they are.

    Raises
    ------
    UnreadableImageError
        When the file is gone or cannot be read, or is shorter than it was.
    """
    if isinstance(encoded, bytes):
        return encoded
    path, start, size = encoded if isinstance(encoded, Slice) else (encoded, 0, -1)
    try:
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read(size)
    except OSError as error:
        raise UnreadableImageError(f"cannot read {path}: {error.strerror}") from None
    if len(content) < size:
        raise UnreadableImageError(f"{path} ends before the image does")
    return content


def decode(encoded: bytes) -> Tensor:
    """An image file's pixels, uint8, shape (3, H, W).

    Parameters
    ----------
    encoded : bytes
        The content of a file in one of :data:`FORMATS`.

    Raises
    ------
    UnreadableImageError
        When it cannot be decoded to its end.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (30, 20), "red").save(buffer, "PNG")
    >>> decode(buffer.getvalue()).shape
    torch.Size([3, 20, 30])
    """
    # np.array copies, and torch may write to the copy; what np.asarray gives is read-only.
    return torch.from_numpy(np.array(_shown(encoded))).permute(2, 0, 1).contiguous()


def thumbnail(encoded: bytes) -> Tensor:
    """An image's mean colours on a grid, uint8, shape (3, THUMBNAIL, THUMBNAIL).

    The whole file is read for it, so a broken one is found as :func:`decode` would find it; but a JPEG is
    decoded to a fraction of its size, which is the lesser part of the work.

    Raises
    ------
    UnreadableImageError
        As :func:`decode` does.
    """
    small = _shown(encoded, glance=True).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def thumbnails(images: Tensor) -> Tensor:
    """The same of decoded images of one size, shape (N, 3, h, w)."""
    return F.adaptive_avg_pool2d(images.float(), THUMBNAIL).round().to(torch.uint8)


def _shown(encoded: bytes, glance: bool = False) -> Image.Image:
    """What a viewer shows, in RGB; UnreadableImageError where it cannot be decoded to its end."""
    # Whatever is wrong with a file, Pillow's decoders say it by some fifteen kinds of exception (OSError,
    # SyntaxError, struct.error, DecompressionBombError, ...), of which it documents two.
    try:
        # Opening reads the header alone. The pixels come with the conversion, while the buffer is open and
        # what a broken file raises is caught.
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if glance:
                image.draft(None, _GLANCE)  # JPEG alone can do so; others are decoded as they are
            pixels = _opaque(image)
            turn = _TURNS.get(_orientation(image))
    except UnidentifiedImageError as error:  # its own words are of a buffer at some address
        raise UnreadableImageError(f"it is none of {', '.join(FORMATS)}, or its header is broken") from error
    except Exception as error:
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
    return pixels if turn is None else pixels.transpose(turn)


def _opaque(image: Image.Image) -> Image.Image:
    """In RGB, over white where it is transparent."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion cuts it off at 255
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    # In RGBA, for a palette's or a colour key's transparency is an alpha channel there like any other.
    white.alpha_composite(image)
    return white.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey in 8 bits, with the value that stands for transparent as an alpha channel."""
    # int64, since uint16 would wrap around in the rounding below; clipped, since mode I has 32 bits.
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    # 65535 = 255 * 257, so this rounds v * 255 / 65535 to the nearest.
    # There are no ties, for 257 is odd: a remainder of 128 goes down, one of 129 up.
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    # Compared in 16 bits: rounded to 8, up to 257 values would be as transparent as this one.
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _orientation(image: Image.Image) -> int:
    """How the image is to be turned, by EXIF's numbers; upright when its EXIF cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a viewer shows a picture whose EXIF is garbage
        return 1


class EncodedImages:
    """Image files, decoded when asked for; what is not given as bytes is read when asked for.

    Parameters
    ----------
    files : sequence of bytes, str or Slice
        The content of each file, or where it is. That all can be decoded is for the one to check who
        collects them.
    thumbnails : Tensor, shape (N, 3, THUMBNAIL, THUMBNAIL), optional
        uint8, of :func:`thumbnail`, where they are known.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (30, 20), "red").save(buffer, "PNG")
    >>> images = EncodedImages([buffer.getvalue()])
    >>> [image.shape for image in images[torch.tensor([0, 0])]]
    [torch.Size([3, 20, 30]), torch.Size([3, 20, 30])]
    """

    def __init__(self, files: Sequence[Encoded], thumbnails: Tensor | None = None) -> None:
        self._files = tuple(files)
        self.thumbnails = thumbnails

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def __getitem__(self, rows: Tensor) -> list[Tensor]:
        """The images at ``rows`` (long, shape (B,)), each uint8 of shape (3, h, w) at its own size.

        Raises
        ------
        UnreadableImageError
            When a file is not what it was when it was collected; the message names it.
        """
        return [self._decoded(self._files[row]) for row in rows.tolist()]

    def _decoded(self, file: Encoded) -> Tensor:
        try:
            return decode(read(file))
        except UnreadableImageError as error:
            where = file if isinstance(file, str) else file.path if isinstance(file, Slice) else None
            if where is None or where in str(error):
                raise
            raise UnreadableImageError(f"{where} cannot be decoded any more: {error}") from error
