"""Images that look the same: what is found, and what is only alike."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from riemann_unlearn.data import EncodedImages
from riemann_unlearn.data.duplicates import look_alikes, thumbnails_of
from riemann_unlearn.data.images import decode, thumbnail
from riemann_unlearn.data.samples import Rows


def picture(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Smooth, as photographs are: a few random colours, interpolated."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (5, 7, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def files() -> list[bytes]:
    """Five pictures; the sixth to eighth are the first again, otherwise saved."""
    other = [saved(picture(seed)) for seed in range(5)]
    first = picture(0)
    return [
        *other,
        saved(first, "JPEG", quality=60),
        saved(first.resize((60, 40), Image.Resampling.LANCZOS), "WEBP"),
        saved(first),
    ]


GONE = torch.arange(8) < 2


@pytest.mark.parametrize("known", [True, False])
def test_one_picture_is_found_however_it_was_saved(known: bool) -> None:
    content = files()
    images = EncodedImages(content, torch.stack(list(map(thumbnail, content))) if known else None)
    assert look_alikes(images, GONE) == [(5, 0), (6, 0), (7, 0)]
    # Of a part of them, rows are the part's.
    part = Rows(images, torch.tensor([7, 3, 0]))
    assert look_alikes(part, torch.tensor([False, False, True])) == [(0, 2)]
    assert torch.equal(thumbnails_of(part, torch.tensor([1])), thumbnails_of(images, torch.tensor([3])))
    assert look_alikes(images, ~GONE) == [(0, 7)]


def test_the_nearest_is_named_and_brightness_hides_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1500, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[1400:] = images[:100].int().add(torch.tensor([1, -1] * 4)).clamp(0, 255).to(torch.uint8)
    images[1499, :, 0, 0] = 255 - images[1499, :, 0, 0]
    gone = torch.arange(1500) < 1300
    assert look_alikes(images, gone) == [(1400 + i, i) for i in range(99)]


def test_flat_pictures_must_be_equal() -> None:
    """The images of digits that differ by one in every pixel, and a white page beside a grey one."""
    images = torch.full((4, 3, 16, 16), 255, dtype=torch.uint8)
    images[1] = 254
    images[3] = 0
    assert look_alikes(images, torch.tensor([True, False, False, False])) == [(2, 0)]


def test_nothing_to_compare_is_nothing_found() -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    assert look_alikes(images, torch.zeros(3, dtype=torch.bool)) == []
    assert look_alikes(images, torch.ones(3, dtype=torch.bool)) == []


def test_a_look_at_a_jpeg_sees_what_decoding_it_does() -> None:
    content = saved(picture(1, (1200, 800)), "JPEG", quality=90)
    whole = torch.nn.functional.adaptive_avg_pool2d(decode(content).float(), 8)
    assert (thumbnail(content).float() - whole).abs().max() <= 6  # of colours that saturate; 1 of others
