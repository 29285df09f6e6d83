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

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from riemann_unlearn.geometry import tangent
from riemann_unlearn.geometry.precision import Curvature, sqrt_c, widen, working
from riemann_unlearn.ops.backend import as_scalar, backend
from riemann_unlearn.ops.polar import Side, add_pair_steps, matched_angles, matched_distances, zeros

__all__ = ["Cones", "cones", "reference"]


class Cones(NamedTuple):
    """What :func:`cones` returns; float64 on devices that have it, shape (B,) each."""

    outside: Tensor
    """ext(t, i) - aper(t), in radians: positive outside the caption's cone."""
    broad_radius: Tensor
    """√c·|v| of the captions."""
    narrow_radius: Tensor
    """√c·|v| of the images."""


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
    if backend(text.device) == "reference":
        return reference(text, image, c, min_radius=min_radius)
    found = _forward(text.to(dtype), image.to(dtype), as_scalar(c, text, curvature=True), min_radius)
    return Cones(*found[:3])


def reference(text: Tensor, image: Tensor, c: Curvature, *, min_radius: float = 0.1) -> Cones:
    """The same by the geometry's functions; :func:`cones` is held to it."""
    angle = tangent.exterior_angle(text, image, c) - tangent.half_aperture(text, c, min_radius)
    radii = (sqrt_c(c, working(v)) * tangent.dist0(v, c) for v in (text, image))
    return Cones(angle, *radii)


@torch.library.custom_op(
    "riemann_unlearn::cones",
    mutates_args=(),
    schema="(Tensor text, Tensor image, Tensor c, float min_radius) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    text: Tensor, image: Tensor, c: Tensor, min_radius: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kernels = _kernels(text)
    if kernels:
        return kernels.forward(text, image, c, min_radius)  # type: ignore[no-any-return]
    left, right = sides(text, image, c, None, None)
    angle = matched_angles(left, right, 0)
    return outside(left, right, angle, min_radius), left.r, right.r, angle, left.norm, right.norm


@_forward.register_fake
def _(text: Tensor, image: Tensor, c: Tensor, min_radius: float) -> tuple[Tensor, ...]:
    return tuple(text.new_empty(len(text), dtype=torch.float64) for _ in range(6))


@torch.library.custom_op(
    "riemann_unlearn::cones_backward",
    mutates_args=(),
    schema="(Tensor text, Tensor image, Tensor c, float min_radius, Tensor[] found, Tensor[] of) "
    "-> (Tensor, Tensor, Tensor)",
)
def _backward(
    text: Tensor, image: Tensor, c: Tensor, min_radius: float, found: list[Tensor], of: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(text)
    if kernels:
        out, out_image, of_root = kernels.backward(text, image, c, min_radius, found, of)
    else:
        angle, *norms = found
        left, right = sides(text, image, c, *norms)
        of_text, of_image, of_root = pair_steps(left, right, angle, of, min_radius)
        out, out_image = zeros(text), zeros(image)
        add_pair_steps(left, right, 0, of_text, of_image, out, out_image)
    return out, out_image, (of_root / (2 * c.double().sqrt())).to(c.dtype)


@_backward.register_fake
def _(
    text: Tensor, image: Tensor, c: Tensor, min_radius: float, found: list[Tensor], of: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(text), torch.empty_like(image), torch.empty_like(c)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    text, image, c, ctx.min_radius = inputs
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(text, image, c, *output[3:])


def _gradients(ctx: Any, *of: Tensor) -> tuple[Tensor | None, ...]:
    text, image, c, *found = ctx.saved_tensors
    return *_backward(text, image, c, ctx.min_radius, found, list(of[:3])), None


_forward.register_autograd(_gradients, setup_context=_save)


def _kernels(like: Tensor) -> Any:
    """The module of the GPU's kernels; for float64 features torch's operations serve."""
    if like.dtype != torch.float32 or backend(like.device) != "triton":
        return None
    return importlib.import_module("riemann_unlearn.ops.cones_triton")


def sides(
    text: Tensor, image: Tensor, c: Tensor, text_norm: Tensor | None, image_norm: Tensor | None
) -> tuple[Side, Side]:
    """Captions and images as the pair functions take them."""
    root = c.double().sqrt()
    return (
        Side(text, root, hyperbolic=True, norm=text_norm),
        Side(image, root, hyperbolic=True, norm=image_norm, right=True),
    )


def outside(left: Side, right: Side, angle: Tensor, min_radius: float) -> Tensor:
    """The exterior angle minus the half aperture, from |u1 - u2|²."""
    across, along, _ = _exterior(left, right, angle)
    kept, sinh, k = _aperture(left, min_radius)
    aperture = torch.where(kept, torch.atan2(k, torch.sqrt((sinh - k) * (sinh + k))), torch.pi / 2)
    return torch.atan2(across, along) - aperture


def pair_steps(
    left: Side, right: Side, angle: Tensor, of: Sequence[Tensor], min_radius: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The steps of captions and images, and the gradient of √c, from those of the three that the op gives."""
    of_outside, of_text, of_image = of
    across, along, usable = _exterior(left, right, angle)
    w, sine = angle / 4, torch.sqrt((angle * (4 - angle)).clamp(min=0)) / 2
    a1, a2, e1, e2 = left.shrunk2, right.shrunk2, left.decay, right.decay
    square = torch.where(usable, across.square() + along.square(), 1.0)  # (2 e^-(r1+r2) sinh D)²
    g = torch.where(usable & (sine > 0), of_outside / square, 0.0)
    # Everything times 4 e^-2(r1+r2), which the square has too.
    cosh = 2 * e1 * e2 + (left.shrunk - right.shrunk).square() + a1 * a2 * w  # 2 e^-(r1+r2) cosh D
    of_r1 = g * across * cosh + of_text
    of_r2 = -g * sine * a1 * 2 * e1 * e2.square() + of_image
    gap = (right.shrunk - left.shrunk) * (e1 + e2)
    turn = g * a2 * e1 * (gap + (2 - a2) * a1 * w) / torch.where(sine > 0, sine, 1.0)
    kept, sinh, k = _aperture(left, min_radius)
    slope = -k * (2 - a1) / (2 * sinh * torch.sqrt((sinh - k) * (sinh + k)))
    of_r1 = of_r1 - torch.where(kept, of_outside * slope, 0.0)
    steps = (
        torch.stack(
            (turn * side.inverse, (side.root * of_r - turn * angle / 2 * side.inverse) * side.inverse), 1
        )
        for side, of_r in ((left, of_r1), (right, of_r2))
    )
    return *steps, (of_r1 * left.norm + of_r2 * right.norm).sum()  # type: ignore[return-value]


def _exterior(left: Side, right: Side, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sine and cosine of the exterior angle, times 2 e^-(r1+r2) sinh D, and where they mean something."""
    _, s = matched_distances(left, right, 0, angle)
    usable = ~((s <= 0) | (left.norm == 0))  # NaN is, and seen
    sine = torch.sqrt((angle * (4 - angle)).clamp(min=0)) / 2
    across = left.decay * right.shrunk2 * sine
    along = (right.shrunk - left.shrunk) * (left.decay + right.decay)
    along = along - right.shrunk2 * (2 - left.shrunk2) * angle / 4
    return torch.where(usable, across, 0.0), torch.where(usable, along, 1.0), usable & (right.norm > 0)


def _aperture(side: Side, min_radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Whether a cone is narrower than a half-space, and e^-r sinh r and e^-r 2K, or 2 and 1 if not."""
    sinh, k = side.shrunk2 / 2, 2 * min_radius * side.decay
    kept = sinh > k
    return kept, torch.where(kept, sinh, 2.0), torch.where(kept, k, 1.0)
