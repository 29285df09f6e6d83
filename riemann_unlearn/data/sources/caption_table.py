"""A table of image files with a caption, a label, or both: csv, tsv, jsonl or parquet.

The table is ``captions.csv`` (or another ending) in the folder that its paths are relative to; ``metadata``
instead of ``captions`` is as good, and so is a table of any name that is given itself. Columns are known by
the names that people give them (:data:`COLUMNS`), and others are passed over. A row is a sample: an image
with several captions has several rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from riemann_unlearn.data.images import Encoded
from riemann_unlearn.data.samples import Dataset
from riemann_unlearn.data.sources.base import Source
from riemann_unlearn.data.sources.collection import CAPTION, Collection
from riemann_unlearn.data.sources.folders import HELDOUT_NAMES, SEEN_NAMES
from riemann_unlearn.data.sources.labels import Labels, read_labels
from riemann_unlearn.data.sources.tables import SUFFIXES, read_rows
from riemann_unlearn.data.taxonomy import Concept
from riemann_unlearn.registry import register

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "filepath", "file_path", "file_name", "filename", "file", "image_path", "image"),
    "caption": ("caption", "text", "title"),
    "label": ("label", "class"),
    "split": ("split",),
}
"""What a column may be called, by what it holds; the first that there is counts."""
_NAMES = tuple(f"{stem}{suffix}" for stem in ("captions", "metadata") for suffix in SUFFIXES)


@register
class CaptionTable(Source):
    """Each row's image with its caption, its label, or the one below the other.

    Labels may have levels above, by a ``taxonomy.csv`` or ``taxonomy.yaml`` beside the table
    (:mod:`riemann_unlearn.data.sources.labels`). Rows whose ``split`` is val or test are held out.
    """

    name = "caption-table"
    description = "a table of image files and captions or labels: captions.csv, .tsv, .jsonl or .parquet"
    named = False

    def opens(self, path: Path) -> bool:
        """Whether it is a table, or has one that is called so."""
        return _table(path) is not None

    def load(self, path: Path | None) -> Dataset:
        """The images that the table at ``path`` names."""
        if path is None or (table := _table(path)) is None:
            raise ValueError("a table of captions has no default place; load it by its path or its folder's")
        labels = read_labels(table.parent, "label")
        rows, levels, broken = _samples(table, labels)
        collection = Collection(levels, labels.caption)
        for where, why in broken:
            collection.skip(where, why)
        # A caption that goes with two labels is two concepts, which read the same.
        labels_of: dict[str, set[str]] = {}
        for row in rows:
            labels_of.setdefault(row.caption, set()).add(row.label)
        for row in rows:
            above = [labels.concept(row.label)] if row.label else []
            if not row.caption:
                concept = above[0]  # a row has one of both at least
            else:
                shared = len(labels_of[row.caption]) > 1
                concept = Concept(
                    row.where,
                    f"{row.caption} ({row.label})" if shared else row.caption,
                    path=tuple(label for one in above for label in (one.name, *one.path)),
                    caption=row.caption,
                )
            collection.add(row.where, row.image, concept, table.name, heldout=row.heldout, id=row.id)
        return collection.dataset(str(path))


class _Row(NamedTuple):
    where: str
    image: Encoded
    id: str
    caption: str
    label: str
    heldout: bool


def _table(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in SUFFIXES else None
    return next((path / name for name in _NAMES if (path / name).is_file()), None)


def _samples(table: Path, labels: Labels) -> tuple[list[_Row], list[str], list[tuple[str, str]]]:
    """The rows that can be used, what their levels are, and which rows cannot be used for what reason."""
    rows: list[_Row] = []
    broken = []
    columns: dict[str, str] | None = None
    for where, row in read_rows(table):
        if columns is None and not isinstance(row, str):
            columns = _columns(table, row)
        try:
            if columns is None or isinstance(row, str):
                raise ValueError(row)
            rows.append(_row(table, where, row, columns))
        except ValueError as error:
            broken.append((where, str(error)))
    levels = [CAPTION] if columns is not None and "caption" in columns else []
    return rows, levels + (list(labels.levels) if columns is None or "label" in columns else []), broken


def _columns(table: Path, row: Mapping[str, Any]) -> dict[str, str]:
    """What each of our columns is called in the table."""
    columns = {
        ours: found for ours, names in COLUMNS.items() if (found := next((n for n in names if n in row), ""))
    }
    if "path" not in columns or not columns.keys() & {"caption", "label"}:
        names = "; ".join(f"{ours}: {', '.join(known)}" for ours, known in COLUMNS.items())
        raise ValueError(
            f"{table} has the columns {', '.join(map(str, row))}; expected one for the path, and one for the "
            f"caption or the label ({names})"
        )
    return columns


def _row(table: Path, where: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> _Row:
    file = row.get(columns["path"])
    image: Encoded
    if isinstance(file, dict) and isinstance(file.get("bytes"), bytes):
        # As Hugging Face keeps images in a parquet; in memory, for there is no file to read them from again.
        image, id = file["bytes"], str(file.get("path") or where)
    elif isinstance(file, str) and file:
        image, id = str(table.parent / file), file  # an absolute path stays one
    else:
        raise ValueError(f"its {columns['path']} is {file!r}")
    texts = {}
    for ours in ("caption", "label"):
        value = row.get(columns[ours]) if ours in columns else ""
        # Labels may be numbers; a caption that is none is none.
        texts[ours] = str(value).strip() if isinstance(value, str) or ours == "label" else ""
        if ours in columns and (value is None or not texts[ours]):
            raise ValueError(f"its {columns[ours]} is {value!r}")
    split = row.get(columns.get("split", "")) or SEEN_NAMES[0]
    if split not in (*SEEN_NAMES, *HELDOUT_NAMES):
        raise ValueError(f"its split is {split!r}; known are {', '.join((*SEEN_NAMES, *HELDOUT_NAMES))}")
    return _Row(where, image, id, texts["caption"], texts["label"], split in HELDOUT_NAMES)
