"""How many of a large bank are at least as similar as one of them is; ``op`` says what it is."""

from riemann_unlearn.ops.ranks.op import ranks

__all__ = ["ranks"]
