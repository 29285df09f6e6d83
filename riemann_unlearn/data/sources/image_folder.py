"""A folder with a sub-folder for each class, as torchvision's ImageFolder has them."""

from __future__ import annotations

from pathlib import Path

from riemann_unlearn.data.samples import Dataset
from riemann_unlearn.data.sources.base import Source
from riemann_unlearn.data.sources.collection import Collection
from riemann_unlearn.data.sources.folders import image_files, split_folders
from riemann_unlearn.data.sources.labels import read_labels
from riemann_unlearn.registry import register


@register
class ImageFolder(Source):
    """Images at any depth in a sub-folder are of the class that is called as it is.

    The sub-folders of classes may themselves be in ``train`` and in ``val`` or ``test``, whose images are
    held out. A ``taxonomy.csv`` or ``taxonomy.yaml`` beside them gives the classes levels above and captions
    (:mod:`riemann_unlearn.data.sources.labels`); without one they are one level.
    """

    name = "image-folder"
    description = "a folder with a sub-folder of images for each class, or with train and val of such"
    named = False

    def opens(self, path: Path) -> bool:
        """Whether there is an image in a sub-folder."""
        return path.is_dir() and any("/" in file for file in image_files(path))

    def load(self, path: Path | None) -> Dataset:
        """The images below ``path``."""
        if path is None:
            raise ValueError("an image folder has no default place; load it by its path")
        splits, labels = split_folders(path), read_labels(path)
        collection = Collection(labels.levels, labels.caption)
        for file in image_files(path):
            first, *inner = file.split("/")
            # Of train/owl/1.png the class is the second part, and of owl/1.png the first.
            heldout = bool(inner) and splits.get(first, False)
            classes = inner[:-1] if first in splits else [first, *inner][:-1]
            if classes:
                concept = labels.concept(classes[0])
                collection.add(file, str(path / file), concept, path.name, heldout=heldout)
            else:
                collection.skip(file, "it is in no class's folder")
        return collection.dataset(str(path))
