"""The k nearest of a large bank; ``op`` says what it is."""

from riemann_unlearn.ops.topk.op import TopK, topk

__all__ = ["TopK", "topk"]
