"""Image files for the tests of sources of folders."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

COLOURS = ["red", "gold", "maroon", "brown", "grey", "olive", "pink", "purple", "navy", "teal"]


def write_image(path: Path, number: int = 0, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[number % len(COLOURS)]).save(path)
    return path
