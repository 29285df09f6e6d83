"""Image-text pairs with concepts: where they come from, their taxonomy, and what to forget of them."""

from riemann_unlearn.data.images import EncodedImages
from riemann_unlearn.data.loading import list_datasets, load
from riemann_unlearn.data.queries import UnknownConceptError
from riemann_unlearn.data.samples import Dataset, Images, Samples
from riemann_unlearn.data.sources.base import SOURCES, Source
from riemann_unlearn.data.taxonomy import Concept, Level, Selection, Taxonomy

__all__ = [
    "SOURCES",
    "Concept",
    "Dataset",
    "EncodedImages",
    "Images",
    "Level",
    "Samples",
    "Selection",
    "Source",
    "Taxonomy",
    "UnknownConceptError",
    "list_datasets",
    "load",
]
