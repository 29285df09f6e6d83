"""Unicode emoji with their names, subcategories and categories: the bundled data, and folders of its form."""

from __future__ import annotations

from pathlib import Path

from riemann_unlearn.data.samples import Dataset
from riemann_unlearn.data.sources.base import Source
from riemann_unlearn.data.sources.shards import first_metadata, load_shards, read_manifest
from riemann_unlearn.registry import register

FOLDER = Path(__file__).parent.parent / "emoji"
LEVELS = ("name", "subcategory", "category")


def caption(level: str, label: str) -> str:
    """A label as Unicode's data has it, in plain words.

    Examples
    --------
    >>> caption("subcategory", "food-fruit"), caption("category", "Food & Drink")
    ('food fruit', 'food and drink')
    """
    words = label.replace("&", "and")
    return words.replace("-", " ") if level == "subcategory" else words.lower()


@register
class Emoji(Source):
    """Shards whose samples have a name, a subcategory and a category; the bundled ones by name."""

    name = "emoji"
    description = "Unicode emoji of six vendors (bundled), or shards with name, subcategory and category"

    def opens(self, path: Path) -> bool:
        """Whether it holds shards that do not say what their levels are, but have the fields of ours."""
        return set(LEVELS) <= set(first_metadata(path)) and "levels" not in read_manifest(path)

    def load(self, path: Path | None) -> Dataset:
        """The shards at ``path``, or the bundled ones."""
        return load_shards(path or FOLDER, LEVELS, caption)
