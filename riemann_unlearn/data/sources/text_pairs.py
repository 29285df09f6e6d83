"""A folder of images, each with a text of the same name beside it that is its caption."""

from __future__ import annotations

import itertools
from pathlib import Path

from riemann_unlearn.data.samples import Dataset
from riemann_unlearn.data.sources.base import Source
from riemann_unlearn.data.sources.collection import CAPTION, Collection
from riemann_unlearn.data.sources.folders import image_files, split_folders
from riemann_unlearn.data.taxonomy import Concept
from riemann_unlearn.registry import register

_SUFFIXES = (".txt", ".caption")
_LOOKED_AT = 20
"""Images of which one has a text beside it, or the folder is of another form."""


@register
class TextPairs(Source):
    """``owl.jpg`` and ``owl.txt``, at any depth; in ``train`` and ``val``, the latter are held out."""

    name = "text-pairs"
    description = "a folder of images, each with its caption in a .txt of the same name"
    named = False

    def opens(self, path: Path) -> bool:
        """Whether one of the first images has a text beside it."""
        if not path.is_dir():
            return False
        first = itertools.islice(image_files(path), _LOOKED_AT)
        return any(_text_of(path / file) is not None for file in first)

    def load(self, path: Path | None) -> Dataset:
        """The pairs below ``path``."""
        if path is None:
            raise ValueError("image-text pairs have no default place; load them by the path of their folder")
        splits = split_folders(path)
        collection = Collection([CAPTION])
        for file in image_files(path):
            text = _text_of(path / file)
            try:
                # On one line: a caption is one text to a tokenizer, however it was broken into lines.
                caption = "" if text is None else " ".join(text.read_text(encoding="utf-8-sig").split())
            except (OSError, UnicodeDecodeError) as error:
                collection.skip(file, f"its text cannot be read: {error}")
                continue
            if caption:
                heldout = splits.get(file.split("/")[0], False)
                collection.add(file, str(path / file), Concept(file, caption), path.name, heldout=heldout)
            else:
                collection.skip(file, "it has no caption beside it" if text is None else "its text is empty")
        return collection.dataset(str(path))


def _text_of(image: Path) -> Path | None:
    texts = (image.with_suffix(suffix) for suffix in _SUFFIXES)
    return next((text for text in texts if text.is_file()), None)
