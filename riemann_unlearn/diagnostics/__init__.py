"""Is this manifold, this dtype, this radius safe? Measured, before a run and during it."""

from riemann_unlearn.diagnostics.audit import Audit, audit, plot

__all__ = ["Audit", "audit", "plot"]
