"""Unlearning: a registry of methods, what runs them on a model, and forgetting in an index."""

from riemann_unlearn.config import RunConfig
from riemann_unlearn.unlearning.api import Interrupted, UnlearningResult, unlearn
from riemann_unlearn.unlearning.index import IndexResult, unlearn_index
from riemann_unlearn.unlearning.methods import (
    METHODS,
    DirectMethod,
    GradientMethod,
    Method,
    create_method,
    list_methods,
    setting,
)
from riemann_unlearn.unlearning.outline import Outline, outline
from riemann_unlearn.unlearning.plan import Plan, plan
from riemann_unlearn.unlearning.problem import Problem, Step

__all__ = [
    "METHODS",
    "DirectMethod",
    "GradientMethod",
    "IndexResult",
    "Interrupted",
    "Method",
    "Outline",
    "Plan",
    "Problem",
    "RunConfig",
    "Step",
    "UnlearningResult",
    "create_method",
    "list_methods",
    "outline",
    "plan",
    "setting",
    "unlearn",
    "unlearn_index",
]
