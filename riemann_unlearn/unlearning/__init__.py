"""Unlearning: a registry of methods, and the loop that runs them."""

from riemann_unlearn.unlearning.index import IndexResult, unlearn_index
from riemann_unlearn.unlearning.loop import (
    Interrupted,
    RunConfig,
    UnlearningResult,
    read_config,
    unlearn,
)
from riemann_unlearn.unlearning.methods import create_method, list_methods

__all__ = [
    "IndexResult",
    "Interrupted",
    "RunConfig",
    "UnlearningResult",
    "create_method",
    "list_methods",
    "read_config",
    "unlearn",
    "unlearn_index",
]
