"""Is this manifold, this dtype, this radius safe? Measured, before a run and during it."""

from riemann_unlearn.diagnostics.audit import RADII, Audit, audit, plot
from riemann_unlearn.diagnostics.subject import find
from riemann_unlearn.diagnostics.watch import StabilityWarning, Watch, safe_radius, watch

__all__ = ["RADII", "Audit", "StabilityWarning", "Watch", "audit", "find", "plot", "safe_radius", "watch"]
