r"""Everything the entailment and norm terms need of the pairs of a batch, in one pass each way.

For a caption with radius r1 and an image with radius r2, at an angle θ seen from the origin, with
w = sin²(θ/2) and D their distance, all in units of the curvature radius:

.. math::

    \mathrm{ext} &= \operatorname{atan2}(\sinh r_2 \sin θ,\; \sinh(r_2-r_1) - 2\sinh r_2 \cosh r_1\, w) \\
    \mathrm{aper} &= \operatorname{asin}(\min(1,\, 2K/\sinh r_1)), \qquad
    \text{outside} = \mathrm{ext} - \mathrm{aper}

    \frac{∂\,\mathrm{ext}}{∂r_1} &= \sin(\mathrm{ext}) \coth D, \qquad
    \frac{∂\,\mathrm{ext}}{∂r_2} = -\frac{\sin θ\, \sinh r_1}{\sinh^2 D}, \qquad
    \frac{∂\,\mathrm{ext}}{∂θ} = \sinh r_2\,
    \frac{\sinh(r_2-r_1) + 2\cosh r_2 \sinh r_1\, w}{\sinh^2 D}

The hinges of L_ent and L_out, their means, and L_norm are operations on vectors of the batch's length. What
touches the features is one pass forward (norms, and |u1 - u2|² of the unit vectors, from which θ comes
without cancellation) and one backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature, widen
from riemann_unlearn.ops.backend import Backend, as_scalar, derivatives, has_triton, implementation
from riemann_unlearn.ops.cones.reference import Cones, reference
from riemann_unlearn.registry import register

_HOME = "riemann_unlearn.ops.cones."
register(Backend("cones", "reference", _HOME + "reference", derivatives=2))
# Anything that has float64; numba's passes over the features, where they are, are in ``polar``.
register(Backend("cones", "vectors", _HOME + "vectors", devices=("cpu", "cuda"), derivatives=1))
register(
    Backend(
        "cones", "triton", _HOME + "triton",
        devices=("cuda",), dtypes=(torch.float32,), derivatives=1, available=has_triton,
    )
)  # fmt: skip


def cones(text: Tensor, image: Tensor, c: Curvature, *, min_radius: float = 0.1) -> Cones:
    """How far images lie outside their captions' cones, and both radii.

    Parameters
    ----------
    text, image : Tensor, shape (B, D)
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
    The angle is 0, with gradient 0, where a caption is at the origin or coincides with its image; on the
    axis of a cone, where it has a kink, its gradient is 0. Second derivatives are not available;
    :func:`reference` has them.

    Examples
    --------
    >>> import torch
    >>> v = torch.tensor([[1.0, 0.0]])
    >>> cones(v, 0.5 * v, c=1.0).outside.round(decimals=3)      # behind its caption: π - asin(0.2/sinh 1)
    tensor([2.9710], dtype=torch.float64)
    """
    if text.ndim != 2 or text.shape != image.shape:
        raise ValueError(
            f"expected features of one shape (B, D), got {tuple(text.shape)} and {tuple(image.shape)}"
        )
    text, image = widen(text), widen(image)
    dtype = torch.promote_types(text.dtype, image.dtype)
    if derivatives("cones", text.device.type, dtype) > 1:
        return reference(text, image, c, min_radius=min_radius)
    outputs = _forward(text.to(dtype), image.to(dtype), as_scalar(c, text, curvature=True), min_radius)
    return Cones(*outputs[:3])


@torch.library.custom_op(
    "riemann_unlearn::cones",
    mutates_args=(),
    schema="(Tensor text, Tensor image, Tensor c, float min_radius) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    text: Tensor, image: Tensor, c: Tensor, min_radius: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = implementation("cones", text).forward(
        text, image, c, min_radius
    )
    return outputs


@_forward.register_fake
def _(text: Tensor, image: Tensor, c: Tensor, min_radius: float) -> tuple[Tensor, ...]:
    return tuple(text.new_empty(len(text), dtype=torch.float64) for _ in range(6))


@torch.library.custom_op(
    "riemann_unlearn::cones_backward",
    mutates_args=(),
    schema="(Tensor text, Tensor image, Tensor c, float min_radius, Tensor[] saved, Tensor[] grads) "
    "-> (Tensor, Tensor, Tensor)",
)
def _backward(
    text: Tensor, image: Tensor, c: Tensor, min_radius: float, saved: list[Tensor], grads: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    grad_text, grad_image, grad_root = implementation("cones", text).backward(
        text, image, c, min_radius, saved, grads
    )
    # The ops work with √c, of which c's gradient is that over 2√c.
    return grad_text, grad_image, (grad_root / (2 * c.double().sqrt())).to(c.dtype)


@_backward.register_fake
def _(
    text: Tensor, image: Tensor, c: Tensor, min_radius: float, saved: list[Tensor], grads: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(text), torch.empty_like(image), torch.empty_like(c)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    text, image, c, ctx.min_radius = inputs
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(text, image, c, *output[3:])


def _gradients(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    text, image, c, *saved = ctx.saved_tensors
    return *_backward(text, image, c, ctx.min_radius, saved, list(grads[:3])), None


_forward.register_autograd(_gradients, setup_context=_save)
