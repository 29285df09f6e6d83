r"""The seven terms of HAC in one op: the contrastive pass, and all that is left of HAC after it.

With R the retain pairs of a batch and U its forget pairs, from what :mod:`riemann_unlearn.ops.contrastive`
finds (matched similarities, log-sum-exps, the mean over negatives) and :mod:`riemann_unlearn.ops.cones` (how
far an image lies outside its caption's cone, radii):

.. math::

    L_{con} &= \operatorname{mean}_R \tfrac12(\text{rows} + \text{columns}) - τ\,\text{matched} \\
    L_{neg} &= -\text{negative}, \qquad L_{pos} = \operatorname{mean}_U \text{matched}, \qquad
    L_{perf} = \operatorname{mean}_U \tfrac12(\text{rows} + \text{columns}) \\
    L_{ent} &= \operatorname{mean}_R \max(0, \text{outside}), \qquad
    L_{out} = \operatorname{mean}_U \max(0, -\text{outside}) \\
    L_{norm} &= \operatorname{mean}_U \tfrac12\bigl((r_i - r^*_i)^2 + (r_t - r^*_t)^2\bigr), \qquad
    r_i, r_t \text{ the radii of image and text}

The contrastive pass has measured the lengths and the angles of the matched pairs already, which is all that a
cone needs. So the features are not read again: forward, the terms take one loop over the pairs; backward,
another finds how far each pair goes along its two vectors for the cones' sake, and the contrastive pass adds
that to the steps that its own matched pairs take.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from riemann_unlearn.geometry.precision import Curvature, widen
from riemann_unlearn.ops.backend import as_scalar, backend
from riemann_unlearn.ops.cones import Cones, outside, pair_steps, sides
from riemann_unlearn.ops.cones import reference as cones_reference
from riemann_unlearn.ops.contrastive import Contrastive, check, fake, implementation
from riemann_unlearn.ops.contrastive import reference as contrastive_reference
from riemann_unlearn.ops.contrastive_layout import Problem, Statistics

__all__ = ["TERMS", "alignment", "calibration", "mean_over", "reference"]

ALIGNMENT = ("contrastive", "negative_alignment", "positive_alignment", "performance")
"""The terms that depend on similarities alone: those of AC."""

TERMS = (*ALIGNMENT, "entailment", "cone_exit", "norm")


def calibration(
    image: Tensor,
    text: Tensor,
    scale: Curvature,
    c: Curvature,
    forget: Tensor,
    *,
    weights: Sequence[float] = (1.0,) * len(TERMS),
    caption_ids: Tensor | None = None,
    min_radius: float = 0.1,
    target_radius: float | None = None,
) -> Tensor:
    """The weighted terms of HAC; float64 on devices that have it.

    Parameters
    ----------
    image, text : Tensor, shape (B, D)
        Tangent vectors at the origin.
    scale : float or Tensor
        τ ≥ 0.
    c : float or Tensor
        Curvature magnitude, c > 0.
    forget : Tensor, shape (B,)
        bool; which pairs are forget pairs.
    weights : seven of float
        Of the terms, in the order of :data:`TERMS`.
    caption_ids : Tensor, shape (B,), optional
        Integers; pairs with equal ids mean the same.
    min_radius : float
        K; within sinh r ≤ 2K a cone is a half-space.
    target_radius : float, optional
        r*; by default, for either modality, the mean over R, through which no gradient flows. Without R
        there is no mean, and the term is 0.

    Returns
    -------
    Tensor, shape (7,)

    Raises
    ------
    TypeError
        For features that are not floating point.
    ValueError
        For shapes that do not fit, or a number ``c`` that is not positive.

    Notes
    -----
    Accuracy, autocast and derivatives are those of :func:`riemann_unlearn.ops.contrastive.contrastive` and
    :func:`riemann_unlearn.ops.cones.cones`.

    Examples
    --------
    >>> import torch
    >>> v = 2 * torch.eye(3)
    >>> terms = calibration(v, v, 1.0, 1.0, torch.tensor([True, False, False]))
    >>> dict(zip(TERMS, terms.round(decimals=3).tolist()))["contrastive"]
    0.035
    """
    if text.shape != image.shape:
        raise ValueError(
            f"expected features of one shape (B, D), got {tuple(image.shape)} and {tuple(text.shape)}"
        )
    check(image, text, forget, caption_ids, 0)
    image, text = widen(image), widen(text)
    dtype = torch.promote_types(image.dtype, text.dtype)
    image, text = image.to(dtype), text.to(dtype)
    if backend(image.device) == "reference":
        return reference(
            image, text, scale, c, forget,
            weights=weights, caption_ids=caption_ids, min_radius=min_radius, target_radius=target_radius,
        )  # fmt: skip
    tau, curvature = as_scalar(scale, image), as_scalar(c, image, curvature=True)
    settings = list(weights), min_radius, target_radius
    found: Tensor = _forward(image, text, tau, curvature, forget, caption_ids, *settings)[0]
    return found


def reference(
    image: Tensor,
    text: Tensor,
    scale: Curvature,
    c: Curvature,
    forget: Tensor,
    *,
    weights: Sequence[float] = (1.0,) * len(TERMS),
    caption_ids: Tensor | None = None,
    min_radius: float = 0.1,
    target_radius: float | None = None,
) -> Tensor:
    """The same in plain torch, with the matrix; :func:`calibration` is held to it."""
    found = contrastive_reference(image, text, scale, c, forget=forget, caption_ids=caption_ids)
    at = cones_reference(text, image, c, min_radius=min_radius)
    return _combine(found, at, scale, forget, weights, target_radius)


def alignment(found: Contrastive, scale: Curvature, forget: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted terms of AC, shape (4,), in the order of :data:`ALIGNMENT`."""
    sums = (found.rows + found.columns) / 2
    terms = (
        mean_over(sums - scale * found.matched, ~forget),
        -found.negative,
        mean_over(found.matched, forget),
        mean_over(sums, forget),
    )
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)])


def mean_over(values: Tensor, chosen: Tensor | None) -> Tensor:
    """Mean over the chosen entries, 0 over none; without a host synchronization."""
    if chosen is None:
        return values.mean() if values.numel() else values.sum()
    picked = torch.where(chosen, values, 0.0)
    return picked.sum() / chosen.sum().clamp(min=1)


def _combine(
    found: Contrastive | Statistics,
    at: Cones,
    scale: Curvature,
    forget: Tensor,
    weights: Sequence[float],
    target_radius: float | None,
) -> Tensor:
    first = alignment(Contrastive(*found[:5]), scale, forget, weights[: len(ALIGNMENT)])
    held, image, text = _off_target(at, forget, target_radius)
    terms = (
        mean_over(at.outside.clamp(min=0), ~forget),
        mean_over((-at.outside).clamp(min=0), forget),
        (mean_over(image.square(), held) + mean_over(text.square(), held)) / 2,
    )
    more = [weight * term for weight, term in zip(weights[len(ALIGNMENT) :], terms, strict=True)]
    return torch.cat([first, torch.stack(more).to(first.dtype)])


def _off_target(at: Cones, forget: Tensor, target_radius: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs L_norm holds, and r - r* of images and texts."""
    radii = at.image_radius, at.text_radius
    if target_radius is not None:
        return forget, radii[0] - target_radius, radii[1] - target_radius
    image, text = (r - mean_over(r, ~forget).detach() for r in radii)
    return forget & (~forget).any(), image, text


_ARGUMENTS = (
    "Tensor image, Tensor text, Tensor scale, Tensor c, Tensor forget, Tensor? caption_ids, float[] weights, "
    "float min_radius, float? target_radius"
)


@torch.library.custom_op(
    "riemann_unlearn::calibration",
    mutates_args=(),
    schema=f"({_ARGUMENTS}) -> ({', '.join(['Tensor'] * (1 + len(Statistics._fields)))})",
)
def _forward(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    c: Tensor,
    forget: Tensor,
    caption_ids: Tensor | None,
    weights: list[float],
    min_radius: float,
    target_radius: float | None,
) -> tuple[Tensor, ...]:
    problem = Problem(image, text, scale, c, forget, caption_ids, 0, True)
    with torch.autocast(image.device.type, enabled=False):
        found: Statistics = implementation(image).forward(problem)
        if backend(image.device) == "triton":
            return _kernels(image).terms(problem, found, weights, min_radius, target_radius), *found
        if backend(image.device) == "numba":
            terms = _kernels(image).terms(
                *_arrays(problem, found), found.rows.numpy(), found.columns.numpy(), float(found.negative),
                tuple(weights), *_numbers(problem, min_radius, target_radius),
            )  # fmt: skip
            return found.matched.new_tensor(terms), *found
        left, right = sides(text, image, c, found.norm_y, found.norm_x)
        at = Cones(outside(left, right, found.angle, min_radius), left.r, right.r)
        return _combine(found, at, scale, forget, weights, target_radius), *found


@_forward.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    c: Tensor,
    forget: Tensor,
    caption_ids: Tensor | None,
    weights: list[float],
    min_radius: float,
    target_radius: float | None,
) -> tuple[Tensor, ...]:
    return image.new_empty(len(TERMS), dtype=torch.float64), *fake(image, text)


@torch.library.custom_op(
    "riemann_unlearn::calibration_backward",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, Tensor[] found, Tensor of) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    c: Tensor,
    forget: Tensor,
    caption_ids: Tensor | None,
    weights: list[float],
    min_radius: float,
    target_radius: float | None,
    found: list[Tensor],
    of: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem, known = Problem(image, text, scale, c, forget, caption_ids, 0, True), Statistics(*found)
    with torch.autocast(image.device.type, enabled=False):
        pull = {"numba": _compiled_pull, "tiled": _pull}.get(backend(image.device)) or _kernels(image).pull
        of_matched, of_sums, *steps, of_scale, of_root, of_negative = pull(
            problem, known, weights, min_radius, target_radius, of
        )
        gradients = implementation(image).backward(
            problem, known, (of_matched, of_sums, of_sums, of_negative), steps=steps
        )
        of_c = of_root / (2 * c.double().sqrt())
        return (
            gradients.x,
            gradients.y,
            gradients.scale + of_scale.to(scale.dtype),
            gradients.c + of_c.to(c.dtype),
        )


@_backward.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    c: Tensor,
    forget: Tensor,
    caption_ids: Tensor | None,
    weights: list[float],
    min_radius: float,
    target_radius: float | None,
    found: list[Tensor],
    of: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(image), torch.empty_like(text), torch.empty_like(scale), torch.empty_like(c)


def _pull(
    p: Problem,
    found: Statistics,
    weights: Sequence[float],
    min_radius: float,
    target_radius: float | None,
    of: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of matched and of log-sum-exps; steps of images and of texts; of τ, √c and negative."""
    assert p.forget is not None
    keep, drop = (chosen.double() / chosen.sum().clamp(min=1) for chosen in (~p.forget, p.forget))
    of_contrastive, of_negative, of_positive, of_performance, of_entailment, of_exit, of_norm = (
        weight * value for weight, value in zip(weights, of.unbind(), strict=True)
    )
    left, right = sides(p.y, p.x, p.c, found.norm_y, found.norm_x)
    at = Cones(outside(left, right, found.angle, min_radius), left.r, right.r)
    of_outside = of_entailment * keep * (at.outside > 0) - of_exit * drop * (at.outside < 0)
    held, image, text = _off_target(at, p.forget, target_radius)
    of_image, of_text = (of_norm * drop * torch.where(held, off, 0.0) for off in (image, text))
    step_text, step_image, of_root = pair_steps(
        left, right, found.angle, (of_outside, of_text, of_image), min_radius
    )
    return (
        of_positive * drop - p.scale.double() * of_contrastive * keep,
        (of_contrastive * keep + of_performance * drop) / 2,
        step_image,
        step_text,
        -of_contrastive * (keep * found.matched).sum(),
        of_root,
        -of_negative,
    )


def _compiled_pull(
    p: Problem,
    found: Statistics,
    weights: Sequence[float],
    min_radius: float,
    target_radius: float | None,
    of: Tensor,
) -> tuple[Tensor, ...]:
    """The same in one loop."""
    of_matched, of_sums = torch.empty(2, len(p.x), dtype=torch.float64)
    steps = torch.empty(2, len(p.x), 2, dtype=torch.float64)
    of_terms = tuple(weight * value for weight, value in zip(weights, of.tolist(), strict=True))
    of_scale, of_root = _kernels(p.x).gradients(
        *_arrays(p, found), of_terms, *_numbers(p, min_radius, target_radius),
        of_matched.numpy(), of_sums.numpy(), *steps.numpy(),
    )  # fmt: skip
    return of_matched, of_sums, *steps, *found.matched.new_tensor((of_scale, of_root, -of_terms[1]))


def _kernels(like: Tensor) -> Any:
    """The module of the compiled loops over the pairs: numba's, or the GPU's."""
    return importlib.import_module(f"riemann_unlearn.ops.calibration_{backend(like.device)}")


def _arrays(p: Problem, found: Statistics) -> tuple[Any, ...]:
    """What both loops read."""
    assert p.forget is not None
    return tuple(v.numpy() for v in (found.matched, found.angle, found.norm_x, found.norm_y, p.forget))


def _numbers(p: Problem, min_radius: float, target_radius: float | None) -> tuple[float, ...]:
    """τ, √c, 2K and r*, NaN for the mean over R."""
    target = math.nan if target_radius is None else target_radius
    return float(p.scale), math.sqrt(p.c), 2 * min_radius, target


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image, text, scale, c, forget, caption_ids, *ctx.settings = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(image, text, scale, c, forget, caption_ids, *output[1:])


def _gradients(ctx: Any, of: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    image, text, scale, c, forget, caption_ids, *found = ctx.saved_tensors
    gradients = _backward(image, text, scale, c, forget, caption_ids, *ctx.settings, found, of)
    return *gradients, None, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
