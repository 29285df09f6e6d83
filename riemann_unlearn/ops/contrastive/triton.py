"""The contrastive op on a GPU: one kernel for its products, and two for everything between them.

Rows are taken in bands. A band of the product, scaled as :mod:`riemann_unlearn.ops.polar` scales careful rows
so that nothing overflows at any radius, is written to a buffer; one kernel turns it into partial log-sum-exps
of its rows and columns, and another, in the backward pass, into the gradient of the product, in place. So
memory is linear in the batch, there are four products of B·B·D, and nothing is decided on the host: masks are
applied in the kernels, shapes do not depend on values, and results are the same in every run.

Products of float32 features run on the tensor cores, with the precision that
``torch.set_float32_matmul_precision`` asks for: at "highest", its default, each is three products of TF32, as
accurate as one of float32; "high" is one of TF32, "medium" one of bfloat16, and near pairs lose what digits
they have. Products of float64 features are the vendor's. The sizes of tiles are found by timing a few when a
shape is first met, after which nothing waits for the device; under ``torch.use_deterministic_algorithms`` the
first is taken untimed, so that all processes sum in the same order.

There are no careful tiles here: of the pairs off the diagonal this gives what
:func:`riemann_unlearn.geometry.tangent.cdist` gives, and says so there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from riemann_unlearn.ops.contrastive.layout import Gradients, Problem, Statistics, most_tiles
from riemann_unlearn.ops.polar import Side, add_matched_gradient, matched_angles, matched_distances

BAND = 1024
"""Rows of the product held at a time."""

BLOCK = 64
"""Of a band, the square one program works on."""


def forward(p: Problem) -> Statistics:
    """As :func:`riemann_unlearn.ops.contrastive.tiled.forward`."""
    w = _Work(p, (None, None))
    angle = matched_angles(*w.sides, p.offset)
    value = w.unit * (matched_distances(*w.sides, p.offset, angle)[0] if p.hyperbolic else -angle)
    own = (p.scale.double() * value).to(p.x.dtype)
    rows, columns, sums = [], torch.full_like(w.sides[1].norm, -torch.inf), []
    for band in w.bands():
        product = w.product(band)
        grid = w.grid(product)
        by_row = product.new_empty(grid[1], len(product))
        by_column = product.new_empty(grid[0], len(p.y))
        totals = product.new_empty(2, *grid)
        _launch(
            _reduce,
            grid,
            product,
            *w.vectors(band),
            own[band],
            *w.scalars,
            by_row,
            by_column,
            totals,
            **w.meta(band),
        )
        # Parts are joined in float64, in a fixed order: no atomic addition, whose order changes from run to
        # run.
        rows.append(by_row.double().logsumexp(0))
        columns = torch.logaddexp(columns, _logsumexp(by_column.double()))
        sums.append(totals.double().sum((1, 2)))
    total, pairs = torch.stack(sums).sum(0) if sums else w.unit.new_zeros(2)
    # Nothing is planned here: zeros of the shape that the operator promises. Its outputs may not share
    # memory, hence the copies.
    return Statistics(
        value,
        torch.cat(rows) if rows else value.clone(),
        columns,
        w.unit * total / pairs.clamp(min=1),
        pairs.clone(),
        value.new_zeros(most_tiles(len(p.x), len(p.y)), 2),
        angle,
        w.sides[0].norm,
        w.sides[1].norm,
    )


def backward(p: Problem, statistics: Statistics, grads: Sequence[Tensor]) -> Gradients:
    """As :func:`riemann_unlearn.ops.contrastive.tiled.backward`."""
    grad_matched, grad_rows, grad_columns, grad_negative = grads
    w = _Work(p, (statistics.norm_x, statistics.norm_y))
    scale, unit, root, own_columns = p.scale.double(), w.unit, p.c.double().sqrt(), w.own
    own = scale * statistics.matched
    in_rows = grad_rows * torch.exp(own - statistics.rows)
    in_columns = grad_columns[own_columns] * torch.exp(own - statistics.columns[own_columns])
    grad_scale = ((in_rows + in_columns) * statistics.matched).sum()
    grad_matched = grad_matched + scale * (in_rows + in_columns)
    dtype = p.x.dtype
    pull = (grad_negative / statistics.pairs.clamp(min=1)).to(dtype).reshape(1)
    column_sums = statistics.columns.to(dtype), grad_columns.to(dtype)
    left, right = w.operands
    grad_left, grad_right = torch.zeros_like(left), torch.zeros_like(right)
    weighted = unit.new_zeros(())
    for band in w.bands():
        product = w.product(band)
        grid = w.grid(product)
        totals = product.new_empty(grid)
        row_sums = statistics.rows[band].to(dtype), grad_rows[band].to(dtype)
        _launch(
            _differentiate,
            grid,
            product,
            *w.vectors(band),
            *row_sums,
            *column_sums,
            pull,
            *w.scalars,
            totals,
            **w.meta(band),
        )
        weighted = weighted + totals.double().sum()
        _multiply(product, right, grad_left[band])
        # Columns get a share from each band, one after the other.
        _multiply(product.mT, left[band], grad_right, accumulate=True)
    grad_x, grad_y = torch.zeros_like(p.x), torch.zeros_like(p.y)
    whole = slice(0, len(p.x)), slice(0, len(p.y))
    grad_root = w.sides[0].add_gradient(grad_x, grad_left, whole[0], careful=True)
    grad_root = grad_root + w.sides[1].add_gradient(grad_y, grad_right, whole[1], careful=True)
    grad_root = grad_root + add_matched_gradient(
        *w.sides, p.offset, statistics.angle, unit * grad_matched, grad_x, grad_y
    )
    grad_scale = grad_scale + unit * weighted
    if p.hyperbolic:  # s = -D/√c
        grad_s = (
            (grad_matched * statistics.matched).sum()
            + grad_negative * statistics.negative
            + scale * unit * weighted
        )
        grad_root = grad_root - grad_s / root
    return Gradients(grad_x, grad_y, grad_scale.to(p.scale.dtype), (grad_root / (2 * root)).to(p.c.dtype))


class _Work:
    """A problem laid out for the kernels."""

    def __init__(self, p: Problem, norms: tuple[Tensor | None, Tensor | None]) -> None:
        root = p.c.double().sqrt()
        self.p = p
        self.unit = -1 / root if p.hyperbolic else -torch.ones_like(root)
        self.own = slice(p.offset, p.offset + len(p.x))
        self.sides = (
            Side(p.x, root, hyperbolic=p.hyperbolic, norm=norms[0]),
            Side(p.y, root, hyperbolic=p.hyperbolic, norm=norms[1], right=True),
        )
        self.operands = self.sides[0].scaled(), self.sides[1].scaled()
        dtype, count = p.x.dtype, len(p.y)
        self.scalars = [v.to(dtype).reshape(1) for v in (p.scale, self.unit)]
        # Kernels take no None. Without flags no pair is forgotten; ids are looked at only under IDS.
        new = p.x.new_zeros(count, dtype=torch.int32)
        self._forget = new if p.forget is None else p.forget.to(torch.int32)
        self._ids = new if p.ids is None else p.ids
        self._polar = [
            (side.r.to(dtype), side.decay.to(dtype)) if p.hyperbolic else (side.norm.to(dtype),) * 2
            for side in self.sides
        ]

    def bands(self) -> list[slice]:
        """Slices of the rows."""
        count = len(self.p.x)
        return [slice(k, min(k + BAND, count)) for k in range(0, count, BAND)]

    def product(self, band: slice) -> Tensor:
        """A band of the product."""
        left, right = self.operands[0][band], self.operands[1]
        return _multiply(left, right.mT, left.new_empty(len(left), len(right)))

    def grid(self, product: Tensor) -> tuple[int, int]:
        """How many programs a band takes, down and across."""
        return triton.cdiv(product.shape[0], BLOCK), triton.cdiv(product.shape[1], BLOCK)

    def vectors(self, band: slice) -> list[Tensor]:
        """What the kernels know of rows and columns: radii, e^-r, forget flags, caption ids."""
        rows = slice(band.start + self.p.offset, band.stop + self.p.offset)
        (r1, decay1), (r2, decay2) = self._polar
        return [
            *(r1[band], decay1[band], self._forget[rows], self._ids[rows]),
            *(r2, decay2, self._forget, self._ids),
        ]

    def meta(self, band: slice) -> dict[str, Any]:
        """Sizes and choices."""
        return {
            "rows": band.stop - band.start,
            "columns": len(self.p.y),
            "first_own": band.start + self.p.offset,
            "HYPERBOLIC": self.p.hyperbolic,
            "IDS": self.p.ids is not None,
            "BLOCK": BLOCK,
        }


def _launch(kernel: Any, grid: Any, *arguments: Any, **meta: Any) -> None:
    """Run a kernel with the settings that are fastest here, or with its first where it must not be timed."""
    # Between near equals timing picks by chance, and another size of tiles sums in another order.
    if torch.are_deterministic_algorithms_enabled() or not arguments[0].is_cuda:
        kernel.fn[grid](*arguments, **meta, **kernel.configs[0].all_kwargs())
    else:
        kernel[grid](*arguments, **meta)


def _logsumexp(parts: Tensor) -> Tensor:
    """Over the first axis; -inf where all parts are."""
    top = parts.amax(0)
    finite = torch.where(top > -torch.inf, top, 0.0)
    return torch.log(torch.exp(parts - finite).sum(0)) + finite


def _multiply(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool = False) -> Tensor:
    """A @ b in ``out``, or added to it."""
    if a.dtype == torch.float64:
        # At beta = 0 what is in ``out``, which may be NaN, is not read.
        return torch.addmm(out, a, b, beta=float(accumulate), out=out)
    (rows, inner), columns = a.shape, b.shape[1]

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(rows, meta["M"]), triton.cdiv(columns, meta["N"])

    _launch(
        _product, grid, a, b, out, rows, columns, inner, *a.stride(), *b.stride(), out.stride(0),
        ACCUMULATE=accumulate, PRECISION=_PRECISION[torch.get_float32_matmul_precision()],
    )  # fmt: skip
    return out


_PRECISION = {"highest": "tf32x3", "high": "tf32", "medium": "bf16"}


_SQUARES = [triton.Config({}, num_warps=warps) for warps in (4, 8)]


@triton.autotune(
    [
        triton.Config({"M": 128, "N": 128, "K": 32}, num_warps=8, num_stages=3),
        triton.Config({"M": 64, "N": 128, "K": 32}, num_warps=4, num_stages=3),
        triton.Config({"M": 64, "N": 64, "K": 32}, num_warps=4, num_stages=4),
    ],
    key=["rows", "columns", "inner", "PRECISION"],
    # Timing runs a kernel many times: what it adds to or replaces has to be put back between the runs.
    restore_value=["out"],
)
@triton.jit
def _product(
    a, b, out, rows, columns, inner, a_row, a_inner, b_inner, b_column, out_row,
    ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One program's M×N of a product of float32 matrices."""
    # Offsets pass 2^31 in a band of 1024 rows from 2^21 columns on.
    i = (tl.program_id(0) * M + tl.arange(0, M)).to(tl.int64)[:, None]
    j = (tl.program_id(1) * N + tl.arange(0, N)).to(tl.int64)[None, :]
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, inner, K):
        k = start + tl.arange(0, K)
        x = tl.load(a + i * a_row + k[None, :] * a_inner, mask=(i < rows) & (k[None, :] < inner), other=0.0)
        y = tl.load(
            b + k[:, None] * b_inner + j * b_column, mask=(k[:, None] < inner) & (j < columns), other=0.0
        )
        if PRECISION == "bf16":
            total += tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16))
        else:
            total += tl.dot(x, y, input_precision=PRECISION)
    inside = (i < rows) & (j < columns)
    if ACCUMULATE:
        total += tl.load(out + i * out_row + j, mask=inside, other=0.0)
    tl.store(out + i * out_row + j, total, mask=inside)


@triton.jit
def _tile(
    product, r1, decay1, forget1, ids1, r2, decay2, forget2, ids2,
    rows, columns, first_own, HYPERBOLIC: tl.constexpr, IDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """V, dV/dproduct, and masks of one program's square: own, in row sums, in column sums, negative."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_i, inside_j = i < rows, j < columns
    inside = inside_i[:, None] & inside_j[None, :]
    # In int64, as in _product.
    where = i[:, None].to(tl.int64) * columns + j[None, :]
    # 1 beyond the edges: its root and logarithm are ordinary until the masks drop it.
    y = tl.load(product + where, mask=inside, other=1.0)
    if HYPERBOLIC:
        a = tl.load(r1 + i, mask=inside_i, other=0.0)[:, None]
        b = tl.load(r2 + j, mask=inside_j, other=0.0)[None, :]
        rest = 4 * tl.load(decay1 + i, mask=inside_i, other=1.0)[:, None]
        rest = rest * tl.load(decay2 + j, mask=inside_j, other=1.0)[None, :]
        # Rounding may leave less than 0. Then D and S as polar's _distance has them.
        y = tl.maximum(y, 0.0)
        root, more = tl.sqrt(y), tl.sqrt(y + rest)
        gap = tl.abs(a - b)
        some = root + more > 0
        d = a + b + 2 * tl.log(tl.where(some, (root + more) / 2, 1.0))
        # Near the origin log1p(t) = log(1 + t)·t/((1 + t) - 1) with t = √q + √(1 + q) - 1, q = sinh²(D/2).
        close = a + b < 1
        q = tl.where(close, y / tl.where(close, rest, 1.0), 1.0)
        t = tl.sqrt(q) + q / (1 + tl.sqrt(1 + q))
        rounded = 1 + t
        # Where t is lost in 1 + t, log(1 + t) is t.
        below = rounded == 1
        d = tl.where(
            close, 2 * tl.where(below, t, tl.log(rounded) * (t / tl.where(below, 1.0, rounded - 1))), d
        )
        v = tl.where(y > 0, tl.maximum(tl.where(some, d, gap), gap), gap)
        s = root * more
        # A distance has no derivative at coincident points; 0 is a subgradient.
        slope = tl.where(s > 0, 1 / tl.where(s > 0, s, 1.0), 0.0)
    else:
        v = y
        slope = tl.where(inside, 1.0, 1.0).to(y.dtype)
    own = j[None, :] == first_own + i[:, None]
    drop1 = tl.load(forget1 + i, mask=inside_i, other=0)[:, None] != 0
    drop2 = tl.load(forget2 + j, mask=inside_j, other=0)[None, :] != 0
    same = own
    if IDS:
        same = (
            tl.load(ids1 + i, mask=inside_i, other=0)[:, None]
            == tl.load(ids2 + j, mask=inside_j, other=0)[None, :]
        )
    # As definition has it: retain pairs among themselves, each with itself and what means something else.
    retained = (drop1 == 0) & (drop2 == 0) & (own | (same == 0))
    by_row = inside & (drop1 | retained)
    by_column = inside & (drop2 | retained)
    negative = inside & drop1 & drop2 & (same == 0) & (own == 0)
    return v, slope, own, by_row, by_column, negative, i, j, where, inside


@triton.autotune(_SQUARES, key=["columns", "HYPERBOLIC", "IDS"])
@triton.jit
def _reduce(
    product, r1, decay1, forget1, ids1, r2, decay2, forget2, ids2, own_logit, scale, unit,
    row_part, column_part, totals,
    rows, columns, first_own, HYPERBOLIC: tl.constexpr, IDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Partial log-sum-exps of a square's rows and columns, the sum of V over its negatives, their number."""
    v, _, own, by_row, by_column, negative, i, j, _, _ = _tile(
        product, r1, decay1, forget1, ids1, r2, decay2, forget2, ids2,
        rows, columns, first_own, HYPERBOLIC, IDS, BLOCK,
    )  # fmt: skip
    logit = tl.load(scale) * tl.load(unit) * v
    matched = tl.load(own_logit + i, mask=i < rows, other=0.0)[:, None]
    # A matched pair is measured by differences, and stands in the sums as such.
    logit = tl.where(own, matched, logit)
    nothing = float("-inf")

    terms = tl.where(by_row, logit, nothing)
    top = tl.max(terms, 1)
    # Without a term the largest is -Inf, and -Inf less itself NaN: such a row is measured from 0.
    base = tl.where(top > nothing, top, 0.0)
    sums = tl.sum(tl.exp(terms - base[:, None]), 1)
    log = tl.where(sums > 0, base + tl.log(tl.where(sums > 0, sums, 1.0)), nothing)
    tl.store(row_part + tl.program_id(1) * rows + i, log, mask=i < rows)
    terms = tl.where(by_column, logit, nothing)
    top = tl.max(terms, 0)
    base = tl.where(top > nothing, top, 0.0)
    sums = tl.sum(tl.exp(terms - base[None, :]), 0)
    log = tl.where(sums > 0, base + tl.log(tl.where(sums > 0, sums, 1.0)), nothing)
    tl.store(column_part + tl.program_id(0) * columns + j, log, mask=j < columns)
    programs = tl.num_programs(0) * tl.num_programs(1)
    place = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(totals + place, tl.sum(tl.where(negative, v, 0.0)))
    tl.store(totals + programs + place, tl.sum(tl.where(negative, 1.0, 0.0).to(v.dtype)))


@triton.autotune(_SQUARES, key=["columns", "HYPERBOLIC", "IDS"], restore_value=["product"])
@triton.jit
def _differentiate(
    product, r1, decay1, forget1, ids1, r2, decay2, forget2, ids2,
    row_log, grad_row, column_log, grad_column, pull, scale, unit, totals,
    rows, columns, first_own, HYPERBOLIC: tl.constexpr, IDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Replace a square of the product by the loss's gradient with respect to it; sum V dL/dlogit."""
    v, slope, own, by_row, by_column, negative, i, j, where, inside = _tile(
        product, r1, decay1, forget1, ids1, r2, decay2, forget2, ids2,
        rows, columns, first_own, HYPERBOLIC, IDS, BLOCK,
    )  # fmt: skip
    tau, sign = tl.load(scale), tl.load(unit)
    logit = tau * sign * v
    # A masked exponent is 0, so that nothing overflows before it is dropped.
    log1 = tl.load(row_log + i, mask=i < rows, other=0.0)[:, None]
    log2 = tl.load(column_log + j, mask=j < columns, other=0.0)[None, :]
    g1 = tl.load(grad_row + i, mask=i < rows, other=0.0)[:, None]
    g2 = tl.load(grad_column + j, mask=j < columns, other=0.0)[None, :]
    # Matched pairs are differentiated by add_matched_gradient, from differences.
    by_row, by_column = by_row & (own == 0), by_column & (own == 0)
    h = tl.where(by_row, g1 * tl.exp(tl.where(by_row, logit - log1, 0.0)), 0.0)
    h += tl.where(by_column, g2 * tl.exp(tl.where(by_column, logit - log2, 0.0)), 0.0)
    tl.store(totals + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(h * v))
    grad_s = tau * h + tl.where(negative, tl.load(pull), 0.0)
    tl.store(product + where, tl.where(own, 0.0, sign * grad_s * slope), mask=inside)
