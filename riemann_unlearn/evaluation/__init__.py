"""Measures of what a model knows: zero-shot accuracy and retrieval."""

from riemann_unlearn.evaluation.zero_shot import evaluate, zero_shot

__all__ = ["evaluate", "zero_shot"]
