"""Lorentz geometry that stays finite: tangent-space functions, and the way to points and back."""

from riemann_unlearn.geometry import tangent
from riemann_unlearn.geometry.space import expmap0, from_ambient, logmap0, to_ambient

__all__ = ["expmap0", "from_ambient", "logmap0", "tangent", "to_ambient"]
