"""What is known of labels beside the images: a taxonomy written in a file of its own, or none.

``taxonomy.csv`` (or tsv) has a row for each label. Its columns are the levels, from specific to general, and
are called what the levels are called; ``caption`` and ``keywords`` (divided by ";") may stand beside them::

    class,kind,caption,keywords
    sandal,footwear,,open shoe; flip-flop
    n03124170,clothing,cowboy hat,

``taxonomy.yaml`` says the same::

    levels: [class, kind]
    labels:
      sandal: {parents: footwear, keywords: [open shoe, flip-flop]}
      n03124170: {parents: [clothing], caption: cowboy hat}
      sneaker: footwear
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riemann_unlearn._yaml import read_yaml
from riemann_unlearn.data.sources.folders import plain
from riemann_unlearn.data.sources.tables import read_rows
from riemann_unlearn.data.taxonomy import Concept

FILES = tuple(f"taxonomy.{suffix}" for suffix in ("csv", "tsv", "yaml", "yml"))
_BESIDE = ("caption", "keywords")


@dataclass(frozen=True)
class Labels:
    """The levels that labels have above them, and what each label is called."""

    levels: tuple[str, ...]
    """What they are called, from specific to general; the first are the labels themselves."""
    concepts: Mapping[str, Concept] = field(default_factory=dict)
    path: Path | None = None
    """The file that says so."""

    def concept(self, label: str) -> Concept:
        """A label as a concept.

        Raises
        ------
        ValueError
            When there is a taxonomy, and it does not have the label.
        """
        if self.path is None:
            return Concept(label, label, caption=plain(label))
        if label not in self.concepts:
            raise ValueError(f"{self.path} lacks {label!r}, which images are labelled with; add it there")
        return self.concepts[label]

    def caption(self, level: str, label: str) -> str:
        """How a label of any of the levels is put into words, as for a taxonomy."""
        return self.concept(label).text if level == self.levels[0] else plain(label)


def read_labels(folder: Path, level: str = "class") -> Labels:
    """The taxonomy in a folder; where there is none, one level called ``level``.

    Raises
    ------
    ValueError
        When there are two, or the one is not of the form that the module's docstring shows.
    """
    paths = [folder / name for name in FILES if (folder / name).is_file()]
    if not paths:
        return Labels((level,))
    if len(paths) > 1:
        raise ValueError(f"{folder} has {paths[0].name} and {paths[1].name}; leave one of them")
    (path,) = paths
    levels, concepts = (_from_table if path.suffix in (".csv", ".tsv") else _from_yaml)(path, level)
    if not concepts:
        raise ValueError(f"{path} names no label; give each a row, or take the file away")
    for concept in concepts.values():
        if len(concept.path) != len(levels) - 1 or not all(concept.path):
            raise ValueError(
                f"{path}: {concept.name!r} has the labels {list(concept.path)} above it; expected one for "
                f"each of {list(levels[1:])}"
            )
    return Labels(levels, concepts, path)


def _from_table(path: Path, level: str) -> tuple[tuple[str, ...], dict[str, Concept]]:
    levels: tuple[str, ...] = ()
    concepts: dict[str, Concept] = {}
    for where, row in read_rows(path):
        if isinstance(row, str):
            raise ValueError(f"{path}: {where}: {row}")
        levels = levels or tuple(name for name in row if name not in _BESIDE)
        label, *above = (row[name].strip() for name in levels)
        words = [word.strip() for word in row.get("keywords", "").split(";")]
        _add(concepts, path, label, above, row.get("caption", "").strip(), [word for word in words if word])
    return levels, concepts


def _from_yaml(path: Path, level: str) -> tuple[tuple[str, ...], dict[str, Concept]]:
    content = read_yaml(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise ValueError(f"{path} is no taxonomy: expected 'labels:' and lines 'LABEL: PARENT' below it")
    concepts: dict[str, Concept] = {}
    for label, about in labels.items():
        entry = about if isinstance(about, dict) else {"parents": about}
        if unknown := set(entry) - {"parents", *_BESIDE}:
            raise ValueError(f"{path}: {label!r} has {sorted(unknown)}; known are parents, caption, keywords")
        caption = entry.get("caption")
        _add(
            concepts,
            path,
            str(label),
            _texts(entry.get("parents")),
            "" if caption is None else str(caption),
            _texts(entry.get("keywords")),
        )
    depth = max((len(concept.path) for concept in concepts.values()), default=0)
    given = _texts(content.get("levels"))
    return tuple(given) or (level, *(f"level {i + 1}" for i in range(depth))), concepts


def _add(
    concepts: dict[str, Concept], path: Path, label: str, above: list[str], caption: str, keywords: list[str]
) -> None:
    if not label:
        raise ValueError(f"{path} has a row without a label; fill it in, or take it out")
    if label in concepts:
        raise ValueError(f"{path} has {label!r} twice; a label stands there once")
    concepts[label] = Concept(label, label, tuple(keywords), tuple(above), caption or plain(label))


def _texts(value: Any) -> list[str]:
    """A list of texts, of one text, or of nothing."""
    if value is None:
        return []
    return [str(entry) for entry in value] if isinstance(value, list) else [str(value)]
