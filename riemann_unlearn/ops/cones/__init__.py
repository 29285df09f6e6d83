"""How far features lie outside entailment cones; ``op`` says what it is."""

from riemann_unlearn.ops.cones.definition import Cones, reference
from riemann_unlearn.ops.cones.op import cones

__all__ = ["Cones", "cones", "reference"]
