"""Where data comes from, one source a file; each registers itself.

The order below matters for folders: of the sources that can open one, the last registered is taken. So the
general come first, and a third party's, registered later, before all of ours.
"""

from riemann_unlearn.data.sources import image_folder, text_pairs, shards, caption_table  # noqa: I001
from riemann_unlearn.data.sources import pets, food101, cifar, fashion_mnist, emoji
from riemann_unlearn.data.sources.base import SOURCES, Source
from riemann_unlearn.registry import import_files

__all__ = [
    "SOURCES",
    "Source",
    "caption_table",
    "cifar",
    "emoji",
    "fashion_mnist",
    "food101",
    "image_folder",
    "pets",
    "shards",
    "text_pairs",
]

# A new file that registers itself needs no line here; it is asked before those above.
import_files(__name__, __path__)
