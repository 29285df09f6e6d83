"""How far features lie outside entailment cones; ``op`` says what it is."""

from riemann_unlearn.ops.cones.op import cones
from riemann_unlearn.ops.cones.reference import Cones, reference

__all__ = ["Cones", "cones", "reference"]
