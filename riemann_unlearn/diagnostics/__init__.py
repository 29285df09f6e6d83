"""Is this manifold, this dtype, this radius safe? Measured, before a run and during it."""

from riemann_unlearn.diagnostics.audit import RADII, Audit, audit, plot
from riemann_unlearn.diagnostics.subject import find

__all__ = ["RADII", "Audit", "audit", "find", "plot"]
