"""How two sets of features compare: one file for each geometry, and what they have in common.

A model owns one, ``model.space``; losses, methods and measures take it and never ask which one it is. A
geometry of one's own is a subclass of :class:`Space` with a ``pairwise``.
"""

from riemann_unlearn.registry import import_files
from riemann_unlearn.spaces.base import SPACES, Space
from riemann_unlearn.spaces.cosine import Cosine
from riemann_unlearn.spaces.lorentz import LorentzTangents
from riemann_unlearn.spaces.manifold import OnManifold
from riemann_unlearn.spaces.sigmoid import Sigmoid, sum_softplus

__all__ = ["SPACES", "Cosine", "LorentzTangents", "OnManifold", "Sigmoid", "Space", "sum_softplus"]

# Each file registers its own; a new one needs no line here.
import_files(__name__, __path__)
