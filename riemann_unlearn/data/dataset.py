"""Image-text data in memory: images, the concept each one shows, and the taxonomy."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from riemann_unlearn.data.shards import MANIFEST_NAME, read_shard
from riemann_unlearn.data.taxonomy import Concept, Taxonomy

_BUNDLED = {"emoji": Path(__file__).parent / "emoji"}
_FASHION_MNIST = "fashion-mnist"


@dataclass(frozen=True)
class ImageTextData:
    """Images with the concept that each of them shows."""

    images: Tensor
    """uint8, shape (N, 3, H, W)."""
    concept: Tensor
    """Long, shape (N,): index into the taxonomy's concepts."""
    source: Tensor
    """Long, shape (N,): index into ``sources`` of where the image comes from."""
    sources: tuple[str, ...]
    """The vendors, sorted; a sample whose json has no ``vendor`` comes from its shard."""
    taxonomy: Taxonomy

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def subset(self, rows: Tensor) -> ImageTextData:
        """The images at ``rows``, under the same taxonomy.

        Parameters
        ----------
        rows : Tensor
            A mask (bool, shape (N,)) or indices (long).

        Examples
        --------
        >>> seen = load("emoji").seen
        >>> noto = seen.subset(seen.source == seen.sources.index("noto"))
        >>> len(noto)
        1906
        """
        return replace(self, images=self.images[rows], concept=self.concept[rows], source=self.source[rows])


@dataclass(frozen=True)
class Dataset:
    """What a model is trained on, and what it is tested on; both under one taxonomy."""

    name: str
    seen: ImageTextData
    heldout: ImageTextData | None

    @property
    def taxonomy(self) -> Taxonomy:
        """The concepts of both parts."""
        return self.seen.taxonomy


def list_datasets() -> list[str]:
    """Names of the datasets: the bundled one, and Fashion-MNIST, whose files are had elsewhere.

    Examples
    --------
    >>> list_datasets()
    ['emoji', 'fashion-mnist']
    """
    return [*_BUNDLED, _FASHION_MNIST]


def load(name_or_path: str | Path = "emoji") -> Dataset:
    """Load a dataset by name, or a folder of WebDataset shards.

    Parameters
    ----------
    name_or_path : str or Path
        A name from :func:`list_datasets`; or a folder with the four files of Fashion-MNIST (see
        :mod:`riemann_unlearn.data.fashion_mnist`), or of ``.tar`` or ``.tar.gz`` files whose samples
        have an image and a ``json`` with ``name``, ``subcategory``, ``category`` and, if there are
        any, ``keywords``. Shards with "heldout" in their name, or so marked in a ``manifest.json``,
        are held out. Images are resized to the size of the first.

    Raises
    ------
    ValueError
        When there is no such dataset, or a shard or sample is not usable; the message says which.

    Examples
    --------
    >>> emoji = load("emoji")
    >>> emoji.seen.images.shape[1:]
    torch.Size([3, 48, 48])
    """
    from riemann_unlearn.data.fashion_mnist import holds_fashion_mnist, load_fashion_mnist

    if str(name_or_path) == _FASHION_MNIST:
        return load_fashion_mnist()
    folder = _BUNDLED.get(str(name_or_path), Path(name_or_path))
    if not folder.is_dir():
        raise ValueError(
            f"no dataset {str(name_or_path)!r}: neither one of {', '.join(list_datasets())} "
            "nor a folder of shards"
        )
    if holds_fashion_mnist(folder):
        return replace(load_fashion_mnist(folder), name=str(name_or_path))
    shards = sorted([*folder.glob("*.tar"), *folder.glob("*.tar.gz")])
    if not shards:
        raise ValueError(f"{folder} has no .tar or .tar.gz file in it")
    heldout_names = _heldout(folder, shards)
    concepts: dict[str, Concept] = {}
    parts: dict[bool, tuple[list[Tensor], list[str], list[str]]] = {
        False: ([], [], []),
        True: ([], [], []),
    }
    size: tuple[int, int] | None = None
    for shard in shards:
        images, names, vendors = parts[shard.name in heldout_names]
        for key, encoded, metadata in read_shard(shard):
            concept = _concept(metadata, f"{shard}: sample {key!r}")
            first = concepts.setdefault(concept.name, concept)
            if (first.subcategory, first.category) != (concept.subcategory, concept.category):
                raise ValueError(
                    f"{shard}: sample {key!r} files {concept.name!r} under "
                    f"{concept.subcategory!r}, {concept.category!r}, and another sample under "
                    f"{first.subcategory!r}, {first.category!r}"
                )
            image = _decode(encoded, f"{shard}: sample {key!r}", size)
            size = (image.shape[2], image.shape[1])
            images.append(image)
            names.append(concept.name)
            vendors.append(str(metadata.get("vendor", shard.name.split(".")[0])))
    # Sorted, so that a concept's index does not depend on how samples are spread over shards.
    taxonomy = Taxonomy(sorted(concepts.values(), key=lambda c: (c.category, c.subcategory, c.name)))
    index = {concept.name: i for i, concept in enumerate(taxonomy.concepts)}

    def part(heldout: bool) -> ImageTextData | None:
        images, names, vendors = parts[heldout]
        if not images:
            return None
        concept = torch.tensor([index[name] for name in names], dtype=torch.long)
        sources = tuple(sorted(set(vendors)))
        source = torch.tensor([sources.index(vendor) for vendor in vendors], dtype=torch.long)
        return ImageTextData(torch.stack(images), concept, source, sources, taxonomy)

    seen = part(heldout=False)
    if seen is None:
        raise ValueError(f"every shard of {folder} is held out; nothing is left to learn from")
    return Dataset(str(name_or_path), seen, part(heldout=True))


def _heldout(folder: Path, shards: list[Path]) -> set[str]:
    """File names of the held-out shards."""
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        return {shard.name for shard in shards if "heldout" in shard.name}
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["shards"]
        return {name for name, entry in entries.items() if entry["split"] == "heldout"}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f'{manifest} is not a manifest: expected {{"shards": {{FILE: {{"split": "seen" or "heldout"}}}}}}'
        ) from None


def _concept(metadata: Any, where: str) -> Concept:
    for field in ("name", "subcategory", "category"):
        if not isinstance(metadata, dict) or not isinstance(metadata.get(field), str):
            raise ValueError(f"{where}: its json lacks the string {field!r}")
    return Concept(
        key=str(metadata.get("key", metadata["name"])),
        name=metadata["name"],
        keywords=tuple(metadata.get("keywords", ())),
        subcategory=metadata["subcategory"],
        category=metadata["category"],
    )


def _decode(encoded: bytes, where: str, size: tuple[int, int] | None) -> Tensor:
    try:
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{where}: not a readable image ({error})") from None
    if size is not None and image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
