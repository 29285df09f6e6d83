"""Whose weights these are: how other projects name the tensors of a model, one project a file.

A layout looks at the names in a file of weights and at the configuration that came with it, and gives both
back as this library has them; None where the names are not its own. The first that knows them is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from riemann_unlearn.models.layouts import hysac, meru, open_clip
from riemann_unlearn.models.weights import State

Layout = Callable[[Mapping[str, Any] | None, State], tuple[dict[str, Any], State] | None]
"""From configuration (None where there is none) and tensors to ours, or None."""

LAYOUTS: tuple[Layout, ...] = (meru.translate, hysac.translate, open_clip.translate)


def translate(config: Mapping[str, Any] | None, state: State) -> tuple[dict[str, Any], State] | None:
    """Configuration and tensors as this library has them; None where no layout knows them."""
    for layout in LAYOUTS:
        if (found := layout(config, state)) is not None:
            return found
    return None
