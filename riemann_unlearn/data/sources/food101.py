"""Food-101 as it unpacks, and as torchvision keeps it: 101 dishes, 750 seen images and 250 held out of each.

Bossard, Guillaumin and Van Gool, "Food-101: Mining Discriminative Components with Random Forests" (ECCV
2014).
"""

from __future__ import annotations

from pathlib import Path

from riemann_unlearn.data.samples import Dataset
from riemann_unlearn.data.sources.base import Source
from riemann_unlearn.data.sources.collection import Collection
from riemann_unlearn.data.sources.folders import folder_with, lines, plain
from riemann_unlearn.data.taxonomy import Concept
from riemann_unlearn.registry import register

_PROMPT = "a photo of {}, a type of food."
"""The prompt that CLIP's zero-shot figures on it are known for."""
_LISTS = (("meta/train.txt", False), ("meta/test.txt", True))


@register
class Food101(Source):
    """Dishes by the names of their folders; ``meta/test.txt`` lists what is held out."""

    name = "food-101"
    description = "Food-101 in the folder that it unpacks to"
    named = False

    def opens(self, path: Path) -> bool:
        """Whether the lists are in the folder, or in the one that they unpack to."""
        return folder_with(path, self.name, _LISTS[0][0]) is not None

    def load(self, path: Path | None) -> Dataset:
        """The images in the folder ``path``."""
        folder = None if path is None else folder_with(path, self.name, _LISTS[0][0])
        if folder is None:
            raise ValueError("Food-101 is loaded by the path of the folder that it unpacks to")
        collection = Collection(["class"])
        for list_name, heldout in _LISTS:
            for line in filter(None, map(str.strip, lines(folder / list_name))):  # such as apple_pie/1005649
                label = line.split("/")[0]
                concept = Concept(label, label, caption=_PROMPT.format(plain(label)))
                file = str(folder / "images" / f"{line}.jpg")
                collection.add(line, file, concept, self.name, heldout=heldout)
        return collection.dataset(str(path))
