"""``riemann-unlearn list``: what there is by name, of every kind."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from riemann_unlearn.cli.commands import print_json


def run(options: argparse.Namespace) -> None:
    """Print one list."""
    if options.data is not None and options.what != "concepts":
        raise ValueError(f"--data is for concepts; {options.what} are the same for any data")
    from riemann_unlearn.report.text import columns_text

    rows = LISTS[options.what](options.data or "emoji")
    if options.json:
        print_json(rows)
    else:
        print(columns_text([tuple(row.values()) for row in rows]))


def _models(_: str) -> list[dict[str, Any]]:
    from riemann_unlearn.models import list_models

    return [
        {"name": m.name, "architecture": m.architecture, "description": m.description} for m in list_models()
    ]


def _methods(_: str) -> list[dict[str, Any]]:
    from riemann_unlearn.unlearning import list_methods

    return [
        {
            "name": method.name,
            "description": method.description,
            "paper": method.paper,
            "settings": ", ".join(_settings(method)),
        }
        for method in list_methods()
    ]


def _settings(method: Any) -> list[str]:
    """Each setting of a method with its value: an instance's own, a class's default, or nothing."""
    if not isinstance(method, type):
        return [f"{name}={value}" for name, value in method.settings().items()]
    entries = fields(method)
    return [entry.name + f"={entry.default}" * (entry.default is not MISSING) for entry in entries]


def _concepts(data: str) -> list[dict[str, Any]]:
    from riemann_unlearn.data import load

    taxonomy = load(data).taxonomy
    # From general to specific, as a folder's path reads.
    names = [level.name for level in reversed(taxonomy.levels)]
    return [
        dict(zip(names, (*reversed(concept.path), concept.name), strict=True))
        for concept in taxonomy.concepts
    ]


def _measures(_: str) -> list[dict[str, Any]]:
    from riemann_unlearn.evaluation.measures.base import chosen_measures

    return [
        {"name": measure.name, "title": measure.title, "range": measure.range, "paper": measure.paper}
        for measure in chosen_measures().values()
    ]


def _sources(_: str) -> list[dict[str, Any]]:
    from riemann_unlearn.data import SOURCES

    return [{"name": name, "description": source.description} for name, source in SOURCES.items()]


def _spaces(_: str) -> list[dict[str, Any]]:
    from riemann_unlearn.spaces import SPACES

    return [
        {"name": name, "description": (space.__doc__ or "").strip().split("\n")[0]}
        for name, space in SPACES.items()
    ]


LISTS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "models": _models,
    "methods": _methods,
    "concepts": _concepts,
    "measures": _measures,
    "sources": _sources,
    "spaces": _spaces,
}
