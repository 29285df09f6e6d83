"""Decoding: what a viewer shows, whatever the file's format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from riemann_unlearn.data.images import EncodedImages, UnreadableImageError, decode

RED, WHITE = [255, 0, 0], [255, 255, 255]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def corners() -> Image.Image:
    """Red above left, green above right, blue below left, black below right; wider than high."""
    image = Image.new("RGB", (32, 16))
    for box, colour in (((0, 0, 16, 8), "red"), ((16, 0, 32, 8), "lime"), ((0, 8, 16, 16), "blue")):
        image.paste(colour, box)
    return image


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def grey16(values: np.ndarray, transparent: int | None = None) -> bytes:
    """A 16-bit grey PNG, written by hand so that what it holds is certain."""
    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))]
    if transparent is not None:
        parts.append(png_chunk(b"tRNS", struct.pack(">H", transparent)))
    parts += [png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bit_grey_keeps_all_levels_of_grey() -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(1, 256)
    pixels = decode(grey16(ramp))
    assert pixels.shape == (3, 1, 256)
    assert torch.equal(pixels[0, 0], torch.arange(256, dtype=torch.uint8))
    assert torch.equal(pixels[1], pixels[0])
    # Rounded to the nearest, not cut off.
    assert decode(grey16(np.array([[0, 128, 129, 65535 - 129, 65535]]))).tolist()[0] == [[0, 0, 1, 254, 255]]


def test_sixteen_bit_grey_may_have_a_transparent_value() -> None:
    pixels = decode(grey16(np.array([[0, 300, 20000]]), transparent=300))
    assert pixels[0, 0].tolist() == [0, 255, 78]


@pytest.mark.parametrize("form", ["PPM", "PNG"])
def test_sixteen_bit_grey_of_another_format(form: str) -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(values), form))[0].tolist() == [[0, 100, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_photograph_is_turned_as_its_exif_says(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    content = encoded(corners(), form, exif=exif, **options)
    pixels = decode(content)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert pixels.shape == ((3, 16, 32) if orientation <= 4 else (3, 32, 16))
    assert (pixels.permute(1, 2, 0).numpy() == np.asarray(upright)).all()
    if orientation == 6:  # turned by a quarter to the right: what was below left is above left
        assert pixels[:, 2, 2].argmax() == 2
        assert pixels[:, 2, 13].argmax() == 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's own
def test_unreadable_exif_leaves_an_image_as_it_is() -> None:
    entry = struct.pack(">HHHI4s", 1, 0x0112, 2, 4, b"up\0\0")  # one entry: the orientation, as text
    word = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + entry + bytes(4)
    for garbage in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\xff\xff", b"\0", word):
        assert decode(encoded(corners(), "JPEG", exif=garbage)).shape == (3, 16, 32)
    for orientation in (9, 0):
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert decode(encoded(corners(), "JPEG", exif=exif)).shape == (3, 16, 32)


def half(mode: str) -> Image.Image:
    """Opaque red or grey on the left, transparent on the right."""
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (4, 0, 8, 4))
    return image.convert(mode)


def palette() -> bytes:
    image = Image.new("P", (8, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 4))
    return encoded(image, transparency=1)


def palette_of_alphas() -> bytes:
    image = Image.new("P", (8, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 4))
    return encoded(image, transparency=b"\xff\x00")


def grey_with_a_transparent_value(mode: str) -> bytes:
    image = Image.new(mode, (8, 4), 0)
    image.paste(1 if mode == "1" else 40, (4, 0, 8, 4))
    return encoded(image, transparency=1 if mode == "1" else 40)


def rgb_with_a_transparent_value() -> bytes:
    image = Image.new("RGB", (8, 4), "red")
    image.paste("blue", (4, 0, 8, 4))
    return encoded(image, transparency=(0, 0, 255))


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: encoded(half("RGBA")), RED),
        (lambda: encoded(half("RGBA"), "WEBP", lossless=True), RED),
        (lambda: encoded(half("LA")), [76, 76, 76]),
        (palette, RED),
        (palette_of_alphas, RED),
        (rgb_with_a_transparent_value, RED),
        (lambda: grey_with_a_transparent_value("L"), [0, 0, 0]),
        (lambda: grey_with_a_transparent_value("1"), [0, 0, 0]),
        (lambda: encoded(half("RGBA"), "GIF"), RED),
    ],
)
def test_what_is_transparent_is_white(make: Callable[[], bytes], left: list[int]) -> None:
    pixels = decode(make())
    assert pixels.shape == (3, 4, 8)
    assert pixels[:, 2, 1].tolist() == left
    assert pixels[:, 2, 6].tolist() == WHITE


def test_partly_transparent_pixels_are_mixed_with_white() -> None:
    pixels = decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))
    assert pixels.unique().tolist() == [127]


@pytest.mark.parametrize(
    ("image", "form", "expected"),
    [
        (Image.new("1", (4, 4), 1), "PNG", WHITE),
        (Image.new("1", (4, 4), 0), "PNG", [0, 0, 0]),
        (Image.new("L", (4, 4), 90), "PNG", [90, 90, 90]),
        (Image.new("RGB", (4, 4), "red"), "BMP", RED),
        (Image.new("RGB", (4, 4), "red"), "GIF", RED),
    ],
)
def test_other_modes_become_rgb(image: Image.Image, form: str, expected: list[int]) -> None:
    pixels = decode(encoded(image, form))
    assert pixels.dtype == torch.uint8
    assert pixels[:, 1, 1].tolist() == expected


def test_cmyk_becomes_rgb() -> None:
    pixels = decode(encoded(Image.new("RGB", (8, 8), "red").convert("CMYK"), "JPEG", quality=95))
    red, green, blue = pixels[:, 4, 4].tolist()
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50, **options)
    assert decode(content)[:, 4, 4].tolist() == RED


def noise() -> Image.Image:
    values = torch.randint(256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def broken_png() -> bytes:
    """One byte of the compressed pixels changed, so the chunk's checksum is wrong."""
    content = bytearray(encoded(noise()))
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


def truncated(form: str) -> bytes:
    content = encoded(noise(), form)
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        encoded(noise(), "EPS"),  # Pillow would have Ghostscript draw it
        broken_png(),
        truncated("PNG"),
        truncated("JPEG"),
        truncated("WEBP"),
        truncated("GIF"),
        encoded(noise())[:20],
        grey16(np.zeros((4, 4)))[:-30],
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0)),
    ],
)
def test_what_is_broken_is_said_to_be(content: bytes) -> None:
    with pytest.raises(UnreadableImageError, match=r"\w+: |it is none of WEBP") as raised:
        decode(content)
    assert " at 0x" not in str(raised.value)  # where a buffer lies is of no help


def test_encoded_images_are_decoded_when_asked_for_each_at_its_own_size() -> None:
    images = EncodedImages([encoded(corners()), encoded(Image.new("RGB", (300, 20), "red"))])
    assert len(images) == 2
    shapes = [tuple(image.shape) for image in images[torch.tensor([1, 0, 1])]]
    assert shapes == [(3, 20, 300), (3, 16, 32), (3, 20, 300)]
    assert images[torch.tensor([], dtype=torch.long)] == []
