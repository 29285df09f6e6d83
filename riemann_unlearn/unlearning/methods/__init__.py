"""The methods, one a file, and their registry."""

from __future__ import annotations

from riemann_unlearn.registry import import_files, register
from riemann_unlearn.unlearning.methods.ac import AC
from riemann_unlearn.unlearning.methods.base import (
    METHODS,
    DirectMethod,
    GradientMethod,
    Method,
    Objective,
    create_method,
    list_methods,
    setting,
)
from riemann_unlearn.unlearning.methods.finetune import Finetune
from riemann_unlearn.unlearning.methods.generalize import Generalize
from riemann_unlearn.unlearning.methods.gradient_ascent import GradientAscent
from riemann_unlearn.unlearning.methods.hac import HAC
from riemann_unlearn.unlearning.methods.l1_sparse import L1Sparse
from riemann_unlearn.unlearning.methods.neggrad_plus import NegGradPlus
from riemann_unlearn.unlearning.methods.nullspace import NullSpace
from riemann_unlearn.unlearning.methods.random_captions import RandomCaptions
from riemann_unlearn.unlearning.methods.retrain import Retrain
from riemann_unlearn.unlearning.methods.tilt import Tilt

__all__ = [
    "AC",
    "HAC",
    "METHODS",
    "DirectMethod",
    "Finetune",
    "Generalize",
    "GradientAscent",
    "GradientMethod",
    "L1Sparse",
    "Method",
    "NegGradPlus",
    "NullSpace",
    "Objective",
    "RandomCaptions",
    "Retrain",
    "Tilt",
    "create_method",
    "list_methods",
    "setting",
]

# Here, for the order in which they are listed: the default and ours first, then the papers', then the
# baselines.
for method in (
    Tilt,
    Generalize,
    HAC,
    AC,
    Finetune,
    L1Sparse,
    GradientAscent,
    NegGradPlus,
    RandomCaptions,
    NullSpace,
    Retrain,
):
    register(method)

# A new file that registers itself needs no line here.
import_files(__name__, __path__)
