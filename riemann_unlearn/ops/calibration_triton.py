"""What :mod:`riemann_unlearn.ops.calibration` adds to the contrastive pass, on a GPU: one kernel each way.

The loops over the pairs are those of :mod:`riemann_unlearn.ops.calibration_numba`, a block of pairs at a
time, float64; the cone of a pair is :mod:`riemann_unlearn.ops.cones_triton`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from riemann_unlearn.ops.cones_triton import aperture, atan2, exterior, inverse, turn
from riemann_unlearn.ops.contrastive_layout import Problem, Statistics

BLOCK = 256
"""Pairs that a program takes at a time."""


def terms(
    p: Problem, found: Statistics, weights: Sequence[float], min_radius: float, target_radius: float | None
) -> Tensor:
    """The seven weighted terms, shape (7,)."""
    out = found.matched.new_empty(7)
    _terms[(1,)](
        *_vectors(p, found), found.rows, found.columns, found.negative.reshape(1), *_scalars(p), out,
        len(p.x), WEIGHTS=tuple(weights), K=2 * min_radius, TARGET=target_radius, BLOCK=BLOCK,
    )  # fmt: skip
    return out


def pull(
    p: Problem,
    found: Statistics,
    weights: Sequence[float],
    min_radius: float,
    target_radius: float | None,
    of: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of matched and of log-sum-exps; steps of images and of texts; of τ, √c and negative."""
    count = len(p.x)
    programs = max(1, triton.cdiv(count, BLOCK))
    new = found.matched.new_empty
    of_matched, of_sums, steps, totals = new(count), new(count), new(2, count, 2), new(2, programs)
    of = of.double().contiguous()
    _gradients[(programs,)](
        *_vectors(p, found), of, *_scalars(p), of_matched, of_sums, steps, totals, count,
        WEIGHTS=tuple(weights), K=2 * min_radius, TARGET=target_radius, BLOCK=BLOCK,
    )  # fmt: skip
    of_scale, of_root = totals.sum(1)
    return of_matched, of_sums, *steps, of_scale, of_root, -weights[1] * of[1]


def _vectors(p: Problem, found: Statistics) -> tuple[Tensor, ...]:
    assert p.forget is not None
    return found.matched, found.angle, found.norm_x, found.norm_y, p.forget.to(torch.int32)


def _scalars(p: Problem) -> tuple[Tensor, Tensor]:
    return p.scale.double().reshape(1), p.c.double().sqrt().reshape(1)


@triton.jit
def _count(norm_image, norm_text, forget, root, count, TARGET: tl.constexpr, BLOCK: tl.constexpr):
    """How many are retained and how many forgotten, at least 1; r* of either side; 1 if there is any, or 0.

    Without a target r* is the mean over retained pairs.
    """
    dropped = tl.zeros((BLOCK,), tl.float64)
    image, text = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        drop = tl.load(forget + i, mask=i < count, other=1) != 0
        dropped += tl.where(drop & (i < count), 1.0, 0.0)
        image += tl.where(drop, 0.0, tl.load(norm_image + i, mask=i < count, other=0.0))
        text += tl.where(drop, 0.0, tl.load(norm_text + i, mask=i < count, other=0.0))
    gone = tl.sum(dropped)
    kept = count - gone
    r = tl.maximum(kept, 1.0)
    if TARGET is None:
        goal_image, goal_text = root * tl.sum(image) / r, root * tl.sum(text) / r
        held = tl.where(kept > 0, 1.0, 0.0)
    else:
        goal_image, goal_text = 0.0 * gone + TARGET, 0.0 * gone + TARGET
        held = 0.0 * gone + 1.0
    return r, tl.maximum(gone, 1.0), goal_image, goal_text, held


@triton.jit
def _terms(
    matched, angle, norm_image, norm_text, forget, rows, columns, negative, scale, root, out, count,
    WEIGHTS: tl.constexpr, K: tl.constexpr, TARGET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All terms, by one program."""
    tau, c = tl.load(scale), tl.load(root)
    r, u, goal_image, goal_text, held = _count(norm_image, norm_text, forget, c, count, TARGET, BLOCK)
    con, pos, perf = (
        tl.zeros((BLOCK,), tl.float64),
        tl.zeros((BLOCK,), tl.float64),
        tl.zeros((BLOCK,), tl.float64),
    )
    ent, out_of, norm = (
        tl.zeros((BLOCK,), tl.float64),
        tl.zeros((BLOCK,), tl.float64),
        tl.zeros((BLOCK,), tl.float64),
    )
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < count
        drop = tl.load(forget + i, mask=inside, other=0) != 0
        keep = inside & (drop == 0)
        s = tl.load(matched + i, mask=inside, other=0.0)
        sums = tl.load(rows + i, mask=inside, other=0.0) + tl.load(columns + i, mask=inside, other=0.0)
        n1 = tl.load(norm_text + i, mask=inside, other=0.0)
        n2 = tl.load(norm_image + i, mask=inside, other=0.0)
        across, along = exterior(n1, n2, tl.load(angle + i, mask=inside, other=0.0), c)
        half, _ = aperture(n1, c, K)
        outside = atan2(across, along) - half
        off_image, off_text = c * n2 - goal_image, c * n1 - goal_text
        con += tl.where(keep, sums / 2 - tau * s, 0.0)
        pos += tl.where(drop, s, 0.0)
        perf += tl.where(drop, sums / 2, 0.0)
        # A comparison that is false leaves what is no number.
        ent += tl.where(keep & ((outside <= 0) == 0), outside, 0.0)
        out_of -= tl.where(drop & ((outside >= 0) == 0), outside, 0.0)
        norm += tl.where(drop, (off_image * off_image + off_text * off_text) / 2, 0.0)
    tl.store(out, WEIGHTS[0] * (tl.sum(con) / r))
    tl.store(out + 1, -WEIGHTS[1] * tl.load(negative))
    tl.store(out + 2, WEIGHTS[2] * (tl.sum(pos) / u))
    tl.store(out + 3, WEIGHTS[3] * (tl.sum(perf) / u))
    tl.store(out + 4, WEIGHTS[4] * (tl.sum(ent) / r))
    tl.store(out + 5, WEIGHTS[5] * (tl.sum(out_of) / u))
    tl.store(out + 6, WEIGHTS[6] * (tl.where(held > 0, tl.sum(norm), 0.0) / u))


@triton.jit
def _gradients(
    matched, angle, norm_image, norm_text, forget, of, scale, root, of_matched, of_sums, steps, totals, count,
    WEIGHTS: tl.constexpr, K: tl.constexpr, TARGET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of pairs: what :func:`pull` gives of them, and their parts of the gradients of τ and √c."""
    tau, c = tl.load(scale), tl.load(root)
    r, u, goal_image, goal_text, held = _count(norm_image, norm_text, forget, c, count, TARGET, BLOCK)
    of_con, of_pos = WEIGHTS[0] * tl.load(of), WEIGHTS[2] * tl.load(of + 2)
    of_perf, of_ent = WEIGHTS[3] * tl.load(of + 3), WEIGHTS[4] * tl.load(of + 4)
    of_out, of_norm = WEIGHTS[5] * tl.load(of + 5), tl.where(held > 0, WEIGHTS[6] * tl.load(of + 6), 0.0)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    drop = tl.load(forget + i, mask=inside, other=0) != 0
    s, apart = tl.load(matched + i, mask=inside, other=0.0), tl.load(angle + i, mask=inside, other=0.0)
    n1 = tl.load(norm_text + i, mask=inside, other=0.0)
    n2 = tl.load(norm_image + i, mask=inside, other=0.0)
    across, along = exterior(n1, n2, apart, c)
    half, slope = aperture(n1, c, K)
    outside = atan2(across, along) - half
    by_text, by_image, by_angle = turn(n1, n2, apart, c, across, along)
    of_outside = tl.where(
        drop, tl.where(outside < 0, -of_out / u, 0.0), tl.where(outside > 0, of_ent / r, 0.0)
    )
    of_r1 = of_outside * (by_text - slope) + tl.where(drop, of_norm * (c * n1 - goal_text) / u, 0.0)
    of_r2 = of_outside * by_image + tl.where(drop, of_norm * (c * n2 - goal_image) / u, 0.0)
    of_angle = of_outside * by_angle
    tl.store(of_matched + i, tl.where(drop, of_pos / u, -tau * of_con / r), mask=inside)
    tl.store(of_sums + i, tl.where(drop, of_perf / u, of_con / r) / 2, mask=inside)
    inverse1, inverse2 = inverse(n1), inverse(n2)
    image, text = steps + 2 * i, steps + 2 * count + 2 * i
    tl.store(image, of_angle * inverse2, mask=inside)
    tl.store(image + 1, (c * of_r2 - of_angle * apart / 2 * inverse2) * inverse2, mask=inside)
    tl.store(text, of_angle * inverse1, mask=inside)
    tl.store(text + 1, (c * of_r1 - of_angle * apart / 2 * inverse1) * inverse1, mask=inside)
    keep = inside & (drop == 0)
    tl.store(totals + tl.program_id(0), -tl.sum(tl.where(keep, of_con * s / r, 0.0)))
    of_root = tl.where(inside, of_r1 * n1 + of_r2 * n2, 0.0)
    tl.store(totals + tl.num_programs(0) + tl.program_id(0), tl.sum(of_root))
