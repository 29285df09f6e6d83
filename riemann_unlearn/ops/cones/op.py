r"""How far features lie outside the entailment cones of others, in one pass each way.

For a cone with its apex at radius r1 and a feature at radius r2, at an angle θ seen from the origin, with
w = sin²(θ/2) and D their distance, all in units of the curvature radius:

.. math::

    \mathrm{ext} &= \operatorname{atan2}(\sinh r_2 \sin θ,\; \sinh(r_2-r_1) - 2\sinh r_2 \cosh r_1\, w) \\
    \mathrm{aper} &= \operatorname{asin}(\min(1,\, 2K/\sinh r_1)), \qquad
    \text{outside} = \mathrm{ext} - \mathrm{aper}

    \frac{∂\,\mathrm{ext}}{∂r_1} &= \sin(\mathrm{ext}) \coth D, \qquad
    \frac{∂\,\mathrm{ext}}{∂r_2} = -\frac{\sin θ\, \sinh r_1}{\sinh^2 D}, \qquad
    \frac{∂\,\mathrm{ext}}{∂θ} = \sinh r_2\,
    \frac{\sinh(r_2-r_1) + 2\cosh r_2 \sinh r_1\, w}{\sinh^2 D}

What touches the features is one pass forward (norms, and |u1 - u2|² of the unit vectors, from which θ comes
without cancellation) and one backward; all else is vectors of the batch's length. ``vectors`` does it by
torch, ``triton`` on a GPU, ``definition`` by the geometry's own functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature, widen
from riemann_unlearn.ops.backend import Backend, as_scalar, derivatives, has_numba, has_triton, implementation
from riemann_unlearn.ops.cones.definition import Cones, reference
from riemann_unlearn.registry import register

_HOME = "riemann_unlearn.ops.cones."
register(Backend("cones", "reference", _HOME + "definition", derivatives=2))
# Anything that has float64; numba's passes over the features, where they are, are in ``polar``.
register(Backend("cones", "vectors", _HOME + "vectors", devices=("cpu", "cuda"), derivatives=1))
register(
    Backend(
        "cones", "numba", _HOME + "numba",
        devices=("cpu",), dtypes=(torch.float32,), derivatives=1, available=has_numba,
    )
)  # fmt: skip
register(
    Backend(
        "cones", "triton", _HOME + "triton",
        devices=("cuda",), dtypes=(torch.float32,), derivatives=1, available=has_triton,
    )
)  # fmt: skip


def cones(broad: Tensor, narrow: Tensor, c: Curvature, *, min_radius: float = 0.1) -> Cones:
    """How far each row of ``narrow`` lies outside the cone of the same row of ``broad``, and both radii.

    Parameters
    ----------
    broad, narrow : Tensor, shape (B, D)
        Tangent vectors at the origin.
    c : float or Tensor
        Curvature magnitude, c > 0.
    min_radius : float
        K; within sinh r ≤ 2K a cone is a half-space.

    Returns
    -------
    Cones

    Raises
    ------
    TypeError
        For features that are not floating point.
    ValueError
        For features of different shapes, or a number ``c`` that is not positive.

    Notes
    -----
    The angle is 0, with gradient 0, where an apex is at the origin or the two coincide; on the
    axis of a cone, where it has a kink, its gradient is 0. Second derivatives are not available;
    :func:`reference` has them.

    Examples
    --------
    >>> import torch
    >>> v = torch.tensor([[1.0, 0.0]])
    >>> cones(v, 0.5 * v, c=1.0).outside.round(decimals=3)      # behind the apex: π - asin(0.2/sinh 1)
    tensor([2.9710], dtype=torch.float64)
    """
    if broad.ndim != 2 or broad.shape != narrow.shape:
        raise ValueError(
            f"expected features of one shape (B, D), got {tuple(broad.shape)} and {tuple(narrow.shape)}"
        )
    broad, narrow = widen(broad), widen(narrow)
    # A float64 side is not rounded to the other's dtype.
    dtype = torch.promote_types(broad.dtype, narrow.dtype)
    if derivatives("cones", broad.device.type, dtype) > 1:
        return reference(broad, narrow, c, min_radius=min_radius)
    outputs = _forward(broad.to(dtype), narrow.to(dtype), as_scalar(c, broad, curvature=True), min_radius)
    return Cones(*outputs[:3])


@torch.library.custom_op(
    "riemann_unlearn::cones",
    mutates_args=(),
    schema="(Tensor broad, Tensor narrow, Tensor c, float min_radius) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    broad: Tensor, narrow: Tensor, c: Tensor, min_radius: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = implementation("cones", broad).forward(
        broad, narrow, c, min_radius
    )
    return outputs


@_forward.register_fake
def _(broad: Tensor, narrow: Tensor, c: Tensor, min_radius: float) -> tuple[Tensor, ...]:
    return tuple(broad.new_empty(len(broad), dtype=torch.float64) for _ in range(6))


@torch.library.custom_op(
    "riemann_unlearn::cones_backward",
    mutates_args=(),
    schema="(Tensor broad, Tensor narrow, Tensor c, float min_radius, Tensor[] saved, Tensor[] grads) "
    "-> (Tensor, Tensor, Tensor)",
)
def _backward(
    broad: Tensor, narrow: Tensor, c: Tensor, min_radius: float, saved: list[Tensor], grads: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    grad_broad, grad_narrow, grad_root = implementation("cones", broad).backward(
        broad, narrow, c, min_radius, saved, grads
    )
    # The ops work with √c, of which c's gradient is that over 2√c.
    return grad_broad, grad_narrow, (grad_root / (2 * c.double().sqrt())).to(c.dtype)


@_backward.register_fake
def _(
    broad: Tensor, narrow: Tensor, c: Tensor, min_radius: float, saved: list[Tensor], grads: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(broad), torch.empty_like(narrow), torch.empty_like(c)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    broad, narrow, c, ctx.min_radius = inputs
    # What only the backward pass reads.
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(broad, narrow, c, *output[3:])


def _gradients(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    broad, narrow, c, *saved = ctx.saved_tensors
    return *_backward(broad, narrow, c, ctx.min_radius, saved, list(grads[:3])), None


_forward.register_autograd(_gradients, setup_context=_save)
