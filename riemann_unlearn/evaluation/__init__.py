"""What a model knows: zero-shot accuracy at every level, and the audit of a forgotten concept.

``subject`` is a model with its features of the data; ``measures`` holds what is asked of it, one measure a
file; ``api`` asks and reports; ``verdict`` says what it comes to.
"""

from riemann_unlearn.evaluation.api import chance, evaluate, full_audit, list_measures
from riemann_unlearn.evaluation.measures.base import MEASURES, Measure
from riemann_unlearn.evaluation.measures.zero_shot import zero_shot
from riemann_unlearn.evaluation.subject import Subject, encode
from riemann_unlearn.evaluation.verdict import Verdict, pooled, verdict

__all__ = [
    "MEASURES",
    "Measure",
    "Subject",
    "Verdict",
    "chance",
    "encode",
    "evaluate",
    "full_audit",
    "list_measures",
    "pooled",
    "verdict",
    "zero_shot",
]
