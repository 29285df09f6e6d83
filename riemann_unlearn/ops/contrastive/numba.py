"""The contrastive op on a CPU in tiles, with the passes between their products compiled by numba."""

from __future__ import annotations

from functools import partial

from riemann_unlearn.ops.contrastive import passes, tiled

forward = partial(tiled.forward, passes=passes)
backward = partial(tiled.backward, passes=passes)
