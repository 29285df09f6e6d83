"""The Oxford-IIIT Pet set as torchvision keeps it: 37 breeds of cats and dogs.

Parkhi, Vedaldi, Zisserman and Jawahar, "Cats and Dogs" (CVPR 2012).
"""

from __future__ import annotations

from pathlib import Path

from riemann_unlearn.data.samples import Dataset
from riemann_unlearn.data.sources.base import Source
from riemann_unlearn.data.sources.collection import Collection
from riemann_unlearn.data.sources.folders import folder_with, lines, plain
from riemann_unlearn.data.taxonomy import Concept
from riemann_unlearn.registry import register

_PROMPT = "a photo of a {}, a type of pet."
"""The prompt that CLIP's zero-shot figures on it are known for."""
_SPECIES = {"1": "cat", "2": "dog"}
_LISTS = (("annotations/trainval.txt", False), ("annotations/test.txt", True))


@register
class Pets(Source):
    """Breeds below cat and dog; ``annotations/test.txt`` lists what is held out."""

    name = "oxford-iiit-pet"
    description = "Oxford-IIIT Pet in torchvision's folder, with images and annotations"
    named = False

    def opens(self, path: Path) -> bool:
        """Whether the annotations are in the folder, or in the one that torchvision makes."""
        return folder_with(path, self.name, _LISTS[0][0]) is not None

    def load(self, path: Path | None) -> Dataset:
        """The images in the folder ``path``."""
        folder = None if path is None else folder_with(path, self.name, _LISTS[0][0])
        if folder is None:
            raise ValueError("Oxford-IIIT Pet is loaded by the path of the folder that torchvision made")
        collection = Collection(["breed", "species"])
        for list_name, heldout in _LISTS:
            for line in lines(
                folder / list_name
            ):  # such as "Abyssinian_100 1 1 1": image, class, species, breed
                image, *numbers = line.split() or [""]
                breed, _, number = image.rpartition("_")
                species = _SPECIES.get(numbers[1]) if len(numbers) == 3 else None
                if species is None or not number:
                    collection.skip(f"{list_name}: {line!r}", "expected an image and three numbers")
                    continue
                concept = Concept(breed, breed, path=(species,), caption=_PROMPT.format(plain(breed)))
                file = str(folder / "images" / f"{image}.jpg")
                collection.add(image, file, concept, self.name, heldout=heldout)
        return collection.dataset(str(path))
