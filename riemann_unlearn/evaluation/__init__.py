"""Measures of what a model knows: zero-shot accuracy, retrieval, and the audit of a forgotten concept."""

from riemann_unlearn.evaluation.audit import audit
from riemann_unlearn.evaluation.forgetting import evaluate
from riemann_unlearn.evaluation.full import full_audit
from riemann_unlearn.evaluation.zero_shot import zero_shot

__all__ = ["audit", "evaluate", "full_audit", "zero_shot"]
