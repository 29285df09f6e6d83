"""What can be asked of a model, one measure a file; a file put here is found by itself."""

from riemann_unlearn.evaluation.measures.base import MEASURES, Measure
from riemann_unlearn.registry import import_files

__all__ = ["MEASURES", "Measure"]

# Each file registers its own; their order in tables is theirs to say (:attr:`Measure.order`).
import_files(__name__, __path__)
