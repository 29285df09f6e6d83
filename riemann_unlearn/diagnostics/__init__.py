"""Is this manifold, this dtype, this radius safe? Measured, before a run and during it.

Only the audit needs mpmath, so it is imported when it is first used: training watches itself without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from riemann_unlearn.diagnostics.watcher import StabilityWarning, Watch, safe_radius, watch

if TYPE_CHECKING:
    from riemann_unlearn.diagnostics.stability import RADII, Audit, audit, plot
    from riemann_unlearn.diagnostics.subject import find

__all__ = ["RADII", "Audit", "StabilityWarning", "Watch", "audit", "find", "plot", "safe_radius", "watch"]

_HOME = {
    "RADII": "stability",
    "Audit": "stability",
    "audit": "stability",
    "find": "subject",
    "plot": "stability",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
