"""Fashion-MNIST with captions: 60,000 seen and 10,000 held-out images of ten kinds of garment.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms" (arXiv 1708.07747; MIT licence). Small enough to train a model again from scratch, without
what is to be forgotten, and large enough that membership means something.

A garment is both a concept and a class of its own ("ankle boot"), so forgetting it means the same at either
level, probes have the ten classes, and zero-shot accuracy is that over them. The kinds above are clothing
(six classes), footwear (three) and accessories (the bag alone, which therefore has no siblings).

The files are not part of this package. They are looked for in the folder named by the environment
variable ``FASHION_MNIST``, else where Debian's package ``dataset-fashion-mnist`` puts them.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from riemann_unlearn.data.samples import Dataset, Samples
from riemann_unlearn.data.sources.base import Source
from riemann_unlearn.data.taxonomy import Concept, Taxonomy
from riemann_unlearn.registry import register

FOLDER_VARIABLE = "FASHION_MNIST"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
LEVELS = ("name", "class", "kind")

_FILES = {
    part: (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    for part, prefix in (("seen", "train"), ("heldout", "t10k"))
}
_SIDE = 28
_CLASSES = [
    # In the order of the labels: 0 is a t-shirt. Four keywords each, of which no caption seen in training
    # or unlearning has more than two, and which no two classes share.
    ("t-shirt", "clothing", ("short-sleeved top", "tee", "crew neck", "undershirt")),
    ("trousers", "clothing", ("pants", "slacks", "jeans", "legs")),
    ("pullover", "clothing", ("sweater", "jumper", "knitwear", "warm")),
    ("dress", "clothing", ("gown", "frock", "sleeveless", "skirt")),
    ("coat", "clothing", ("jacket", "overcoat", "winter", "zip")),
    ("sandal", "footwear", ("open shoe", "flip-flop", "summer", "strap")),
    ("shirt", "clothing", ("blouse", "collar", "buttons", "formal")),
    ("sneaker", "footwear", ("running shoe", "trainers", "sport", "laces")),
    ("bag", "accessories", ("handbag", "purse", "handle", "satchel")),
    ("ankle boot", "footwear", ("high shoe", "heel", "leather", "bootee")),
]


@register
class FashionMNIST(Source):
    """Fashion-MNIST from its four idx files, plain or ``.gz``.

    Images are dark on white, as in a catalogue and as the bundled ones are; the three channels are one block
    of memory seen three times, 47 MB for the 60,000.
    """

    name = "fashion-mnist"
    description = "Fashion-MNIST (Debian's dataset-fashion-mnist), or a folder with its four files"

    def opens(self, path: Path) -> bool:
        """Whether the four files are in the folder."""
        return all(_find(path, name) is not None for names in _FILES.values() for name in names)

    def load(self, path: Path | None) -> Dataset:
        """The four files in the folder ``path``, else where the environment or Debian's package has them."""
        where = Path(path or os.environ.get(FOLDER_VARIABLE) or DEBIAN_FOLDER)
        if not self.opens(where):
            raise ValueError(
                f"Fashion-MNIST is not in {where}: install Debian's package dataset-fashion-mnist, or set "
                f"{FOLDER_VARIABLE} to the folder of its four files "
                "(torchvision.datasets.FashionMNIST(ROOT, download=True) writes them to "
                "ROOT/FashionMNIST/raw)"
            )
        concepts = [
            Concept(str(label), name, keywords, path=(name, kind))
            for label, (name, kind, keywords) in enumerate(_CLASSES)
        ]
        taxonomy = Taxonomy(concepts, LEVELS, _caption)
        seen, heldout = (_part(where, *names, taxonomy) for names in _FILES.values())
        prefixes = (("train", seen), ("t10k", heldout))
        ids = tuple(f"{prefix}/{i}" for prefix, part in prefixes for i in range(len(part)))
        return Dataset(self.name, seen, heldout, ids)


def _caption(level: str, label: str) -> str:
    # A class is worded a little differently from its name, where it can be ("t shirt", "t-shirt").
    return label.replace("-", " ") if level == "class" else label


def _part(folder: Path, images_name: str, labels_name: str, taxonomy: Taxonomy) -> Samples:
    labels = _read_idx(folder, labels_name, dimensions=1)
    images = _read_idx(folder, images_name, dimensions=3)
    if images.shape != (len(labels), _SIDE, _SIDE) or labels.max() >= len(taxonomy.concepts):
        raise ValueError(
            f"{folder} is not Fashion-MNIST: {images_name} holds {tuple(images.shape)}, {labels_name} "
            f"{len(labels)} labels up to {int(labels.max())}"
        )
    # In place, for the buffer is this function's own.
    images.bitwise_not_()  # 255 - image: dark on white
    return Samples(
        # A channel stride of 0. Nothing may write to these images: three channels would change at once.
        images[:, None].expand(-1, 3, -1, -1),
        labels.long(),
        torch.zeros(len(labels), dtype=torch.long),
        ("fashion-mnist",),
        taxonomy,
    )


def _read_idx(folder: Path, name: str, dimensions: int) -> Tensor:
    """The uint8 array of an idx file: 0, 0, 8 (unsigned byte), rank, big-endian sizes, then the data."""
    path = _find(folder, name) or folder / name  # if it is gone since it was looked for, reading it says so
    header = 4 + 4 * dimensions
    try:
        # A bytearray, which torch.frombuffer shares and may write to; bytes it would warn of.
        content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is not readable: {error}") from None
    # A file that ends with its header, or before, gets no sizes. Their product is 1 and the rest at most 0
    # bytes, so the next line refuses it: frombuffer takes no empty rest.
    sizes = np.frombuffer(bytes(content[4:header]), dtype=">u4") if len(content) > header else np.zeros(0)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) - header != np.prod(sizes, dtype=np.int64):
        raise ValueError(f"{path} is not an idx file of bytes in {dimensions} dimensions")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(*sizes.tolist())


def _find(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)
