"""Machine unlearning on Lorentz manifolds: forget a concept, prove it, keep the rest.

Everything is imported when it is first used, so that the losses cost only torch and geoopt, and the
command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from riemann_unlearn._version import __version__

# For type checkers and editors, which do not run __getattr__.
if TYPE_CHECKING:
    from riemann_unlearn import (
        data,
        diagnostics,
        evaluation,
        geometry,
        losses,
        models,
        ops,
        optim,
        report,
        spaces,
        testing,
        training,
        unlearning,
    )
    from riemann_unlearn.data import list_datasets
    from riemann_unlearn.evaluation import evaluate, list_measures
    from riemann_unlearn.geometry import Lorentz
    from riemann_unlearn.models import list_models, load
    from riemann_unlearn.registry import register
    from riemann_unlearn.unlearning import list_methods, unlearn

__all__ = [
    "Lorentz",
    "__version__",
    "data",
    "diagnostics",
    "evaluate",
    "evaluation",
    "geometry",
    "list_datasets",
    "list_measures",
    "list_methods",
    "list_models",
    "load",
    "losses",
    "models",
    "ops",
    "optim",
    "register",
    "report",
    "spaces",
    "testing",
    "training",
    "unlearn",
    "unlearning",
]

# The module of each name that is no module itself.
_HOME = {
    "Lorentz": "geometry",
    "evaluate": "evaluation",
    "list_datasets": "data",
    "list_measures": "evaluation",
    "list_methods": "unlearning",
    "list_models": "models",
    "load": "models",
    "register": "registry",
    "unlearn": "unlearning",
}


# Called for what is not there yet. The import of a submodule puts it there: once for each.
def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
