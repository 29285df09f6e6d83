"""Image-text pairs with concepts: the bundled emoji, WebDataset shards, and what to forget of them."""

from riemann_unlearn.data.dataset import Dataset, ImageTextData, list_datasets, load
from riemann_unlearn.data.taxonomy import Concept, Selection, Taxonomy, UnknownConceptError

__all__ = [
    "Concept",
    "Dataset",
    "ImageTextData",
    "Selection",
    "Taxonomy",
    "UnknownConceptError",
    "list_datasets",
    "load",
]
