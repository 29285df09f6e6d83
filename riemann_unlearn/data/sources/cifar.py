"""CIFAR-10 and CIFAR-100 as torchvision keeps them on disk, with the level above that each has.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). CIFAR-100's twenty superclasses
are its own; the ten classes of CIFAR-10 are animals and vehicles. The files are Python pickles, which could
run anything, so they are read by an unpickler that knows arrays, and refuses whatever else one asks for.
"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from riemann_unlearn.data.samples import Dataset, Samples
from riemann_unlearn.data.sources.base import Source
from riemann_unlearn.data.sources.folders import folder_with, plain, plainly
from riemann_unlearn.data.taxonomy import Concept, Taxonomy
from riemann_unlearn.registry import register

_PROMPT = "a photo of a {}."
"""The prompt that CLIP's zero-shot figures on CIFAR are known for."""
_SIDE = 32
_ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")


@register
class CIFAR10(Source):
    """Ten classes below animals and vehicles; 50,000 seen images and 10,000 held out."""

    name = "cifar-10"
    description = "CIFAR-10 in torchvision's folder, cifar-10-batches-py"
    named = False

    def opens(self, path: Path) -> bool:
        """Whether the files are in the folder, or in the one that they unpack to."""
        return folder_with(path, "cifar-10-batches-py", "batches.meta") is not None

    def load(self, path: Path | None) -> Dataset:
        """The images in the folder ``path``."""
        folder = None if path is None else folder_with(path, "cifar-10-batches-py", "batches.meta")
        if folder is None:
            raise ValueError("CIFAR-10 is loaded by the path of the folder that torchvision unpacked it to")
        names = _unpickle(folder / "batches.meta")["label_names"]
        above = ["animal" if name in _ANIMALS else "vehicle" for name in names]
        seen = [folder / f"data_batch_{i}" for i in range(1, 6)]
        return _dataset(self.name, "labels", names, above, ("class", "kind"), seen, [folder / "test_batch"])


@register
class CIFAR100(Source):
    """A hundred classes below twenty superclasses; 50,000 seen images and 10,000 held out."""

    name = "cifar-100"
    description = "CIFAR-100 in torchvision's folder, cifar-100-python"
    named = False

    def opens(self, path: Path) -> bool:
        """Whether the files are in the folder, or in the one that they unpack to."""
        folder = folder_with(path, "cifar-100-python", "meta")
        return folder is not None and (folder / "train").is_file()

    def load(self, path: Path | None) -> Dataset:
        """The images in the folder ``path``."""
        folder = None if path is None else folder_with(path, "cifar-100-python", "meta")
        if folder is None:
            raise ValueError("CIFAR-100 is loaded by the path of the folder that torchvision unpacked it to")
        meta, train = _unpickle(folder / "meta"), _unpickle(folder / "train")
        # Nowhere but on the images is it written which superclass a class is of.
        parent = dict(zip(train["fine_labels"], train["coarse_labels"], strict=True))
        names = meta["fine_label_names"]
        above = [meta["coarse_label_names"][parent[label]] for label in range(len(names))]
        levels = ("class", "superclass")
        return _dataset(self.name, "fine_labels", names, above, levels, [folder / "train"], [folder / "test"])


def _dataset(
    name: str,
    key: str,
    names: Sequence[str],
    above: Sequence[str],
    levels: Sequence[str],
    seen: Sequence[Path],
    heldout: Sequence[Path],
) -> Dataset:
    concepts = [
        Concept(str(i), label, path=(kind,), caption=_PROMPT.format(plain(label)))
        for i, (label, kind) in enumerate(zip(names, above, strict=True))
    ]
    taxonomy = Taxonomy(concepts, levels, plainly)
    (first, first_ids), (rest, rest_ids) = (_part(name, paths, key, taxonomy) for paths in (seen, heldout))
    return Dataset(name, first, rest, first_ids + rest_ids)


def _part(name: str, paths: Sequence[Path], key: str, taxonomy: Taxonomy) -> tuple[Samples, tuple[str, ...]]:
    batches = [_unpickle(path) for path in paths]
    try:
        pixels = np.concatenate([batch["data"].reshape(-1, 3, _SIDE, _SIDE) for batch in batches])
        concept = torch.tensor([label for batch in batches for label in batch[key]], dtype=torch.long)
        ids = tuple(file for batch in batches for file in batch["filenames"])
        samples = Samples(torch.from_numpy(pixels), concept, torch.zeros_like(concept), (name,), taxonomy)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{paths[0].parent} is not {name} as torchvision keeps it: {error!r}") from None
    return samples, ids


_REBUILD: Any = np.empty(0).__reduce__()[0]
_KNOWN: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD,  # where it was before numpy 2
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _Arrays(pickle.Unpickler):
    """Knows what arrays of numbers are made of, and nothing that could do anything."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array") from None


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            # The files are of Python 2, whose texts were bytes.
            content = _Arrays(file, encoding="latin1").load()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # a broken pickle raises whatever the bytes happen to say
        raise ValueError(f"{path} is not a file of CIFAR: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a file of CIFAR: it holds a {type(content).__name__}")
    return content
