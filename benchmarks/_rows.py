"""Results of a benchmark that goes on where it stopped: one JSON line a run, and tables of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from riemann_unlearn.options import parse_setting
from riemann_unlearn.unlearning.methods import create_method


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that are there."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a run from others; two with the same need not both be made."""
    changed = tuple(sorted(row["settings"].items()))
    return row["model"], row["method"], changed, tuple(row["forget"]), row["seed"]


def settings(
    method: str, changes: Sequence[str] = (), found: Mapping[str, float] | None = None
) -> dict[str, float]:
    """All of a method: its defaults, which may be others one day, but for what was found or --set changes."""
    return asdict(create_method(method, {**(found or {}), **dict(map(parse_setting, changes))}))


def label(row: Mapping[str, Any]) -> str:
    """The method of a run, and what of its settings is no default, unless a search found them."""
    name: str = row["method"]
    usual = settings(name) if row["settings"] and not row.get("tuned") else row["settings"]
    changed = [f"{name} {value:g}" for name, value in row["settings"].items() if value != usual.get(name)]
    return name + (f" ({', '.join(changed)})" if changed else "")
