"""What can be asked of a model, one measure a file; a file put here is found by itself."""

import importlib
import pkgutil

from riemann_unlearn.evaluation.measures.base import MEASURES, Measure

# Each file registers its own; their order in tables is theirs to say (:attr:`Measure.order`).
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["MEASURES", "Measure"]
