"""What is shown of a run, an evaluation and an audit, as tables; for the terminal and for the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from riemann_unlearn.report.text import Row, Table, tables_text

GROUPS = ("forget", "retain")
SPLITS = {"seen images": "seen", "held-out images": "heldout"}
ASKED_OTHERWISE = "audit: asked in other ways"

Pair = tuple[float | None, float | None]


@dataclass(frozen=True)
class Measured:
    """One measure of a run, each in [0, 1]."""

    label: str
    shares: Mapping[str, Pair]
    """Before and after, by group; None for a group without images."""
    chance: float
