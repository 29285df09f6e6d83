"""What lies between the products of a float32 tile of the contrastive op, compiled: one pass each way.

A pair takes a square root, a logarithm and an exponential in either direction, in registers. numba's own are
calls, of which none is vectorized; :func:`_exp` and :func:`_log1p` are straight-line code, right to 1e-7, and
a core does eight pairs at a time.

Matched pairs and equal captions are skipped. Columns are sorted so that the captions equal to a row's are
neighbours, so a row has at most four stretches of columns, in each of which all pairs are treated alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from riemann_unlearn._jit import EXACT, SUMS, jit

CAREFUL, SHARED, TWICE = 0, 1, 2
"""What becomes of a tile, as :class:`riemann_unlearn.ops.contrastive.layout.Fate` has it; written again
here, for what is compiled is kept, and a change in another file would not be seen."""

_f4 = np.float32
_ZERO, _HALF, _ONE, _TWO = _f4(0), _f4(0.5), _f4(1), _f4(2)
_PER_LN2 = _f4(1 / math.log(2))
_LN2_HIGH = _f4(0.693359375)  # nine bits, so that its products with exponents are exact
_LN2_LOW = _f4(math.log(2) - 0.693359375)


@intrinsic
def _power_of_two(typing: Any, n: Any) -> Any:
    """2ⁿ of a whole number, float32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = builder.fptosi(arguments[0], ir.IntType(32))
        # The field of the exponent, biased by 127. As _exp clamps it n is from -126 to 127: a normal number.
        shifted = builder.shl(builder.add(whole, whole.type(127)), whole.type(23))
        return builder.bitcast(shifted, ir.FloatType())

    return types.float32(types.float32), code


@intrinsic
def _exponent(typing: Any, u: Any) -> Any:
    """The e of u = m·2ᵉ with m from √½ to √2, as float32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(32))
        # The bits of √½. Positive floats are ordered as their bits: what lies above in steps of 2^23 is e.
        above = builder.sub(bits, bits.type(0x3F3504F3))
        return builder.sitofp(builder.ashr(above, bits.type(23)), ir.FloatType())

    return types.float32(types.float32), code


@intrinsic
def _mantissa(typing: Any, u: Any) -> Any:
    """The m of u = m·2ᵉ with m from √½ to √2."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(32))
        above = builder.sub(bits, bits.type(0x3F3504F3))
        return builder.bitcast(builder.sub(bits, builder.and_(above, bits.type(-(1 << 23)))), ir.FloatType())

    return types.float32(types.float32), code


# EXACT here and in _log1p: if sums could be taken in any order, the two parts of log 2 would become one
# number, and t - ((1 + t) - 1) nothing.
@jit(EXACT)
def _exp(x: Any) -> Any:
    """Of x up to 88; below -87 it stays at e^-87. Polynomial: Cephes' expf."""
    x = min(max(x, _f4(-87)), _f4(88))
    n = np.floor(x * _PER_LN2 + _HALF)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = _f4(1.9875691500e-4)
    p = p * r + _f4(1.3981999507e-3)
    p = p * r + _f4(8.3334519073e-3)
    p = p * r + _f4(4.1665795894e-2)
    p = p * r + _f4(1.6666665459e-1)
    p = p * r + _f4(5.0000001201e-1)
    return (p * (r * r) + r + _ONE) * _power_of_two(n)


@jit(EXACT)
def _log1p(t: Any) -> Any:
    """Of t ≥ 0. Polynomial: Cephes' logf; what 1 + t rounds away comes back as a quotient."""
    # log(1 + t) = log u + (t - (u - 1))/u, where u is 1 + t rounded and u - 1 exact: to first order in what
    # the rounding took away, which is at most 2^-24 of u.
    u = _ONE + t
    e, f = _exponent(u), _mantissa(u) - _ONE
    z = f * f
    p = _f4(7.0376836292e-2)
    p = p * f + _f4(-1.1514610310e-1)
    p = p * f + _f4(1.1676998740e-1)
    p = p * f + _f4(-1.2420140846e-1)
    p = p * f + _f4(1.4249322787e-1)
    p = p * f + _f4(-1.6668057665e-1)
    p = p * f + _f4(2.0000714765e-1)
    p = p * f + _f4(-2.4999993993e-1)
    p = p * f + _f4(3.3333331174e-1)
    small = p * f * z + e * _LN2_LOW
    return f + ((small - _HALF * z) + (t - (u - _ONE)) / u) + e * _LN2_HIGH


@jit(EXACT)
def _stretches(lo: int, hi: int, own: int, first: int, width: int, negatives: bool) -> Any:
    """Where a row's four stretches of columns begin, and where they end.

    The first two hold the captions that differ from its own, the others those of negatives that equal it.
    """
    a, b = min(max(lo - first, 0), width), min(max(hi - first, 0), width)
    # Within the run, so that where the own column lies elsewhere the run is one stretch and the other empty.
    o = min(max(own - first, a), b)
    after = min(max(own + 1 - first, a), b)
    if not negatives:
        return (0, b, 0, 0), (a, width, 0, 0)
    return (0, b, a, after), (a, width, o, b)


@jit(SUMS)
def _measure(q: Any, near: Any, sinh: Any, hyperbolic: bool) -> Any:
    """V in place of the product; the number of pairs that are too near or missing, and ΣV."""
    bad, total = _ZERO, _ZERO
    if hyperbolic:
        for j in range(q.size):
            p = q[j]
            # Asked so that NaN is bad: every comparison with it is false.
            bad += _ZERO if p > near * sinh[j] else _ONE
            d = _log1p(p + math.sqrt(p * (p + _TWO)))
            total += d
            q[j] = d
    else:
        for j in range(q.size):
            total += q[j]
            bad += _ONE if math.isnan(q[j]) else _ZERO
    return bad, total


# What could be NaN has been refused by _measure; without the promise a minimum is not vectorized.
@jit(SUMS | {"nnan"})
def _least(v: Any, least: Any) -> Any:
    """The least of a row; and each column's in ``least``."""
    lowest = _f4(math.inf)
    for j in range(v.size):
        lowest = min(lowest, v[j])
        least[j] = min(least[j], v[j])
    return lowest


@jit(SUMS)
def _add(v: Any, slope: Any, reference: Any, columns: Any) -> Any:
    """exp(slope·V - reference), summed over a row; and onto ``columns``. V must be numbers."""
    total = _ZERO
    for j in range(v.size):
        e = _exp(slope * v[j] - reference)
        total += e
        columns[j] += e
    return total


@jit(SUMS)
def _add_apart(v: Any, slope: Any, top: Any, tops: Any, columns: Any) -> Any:
    """The same with another reference for each column than for the row."""
    total = _ZERO
    for j in range(v.size):
        total += _exp(slope * v[j] - top)
        columns[j] += _exp(slope * v[j] - tops[j])
    return total


@jit(SUMS)
def _measure_and_add(q: Any, near: Any, sinh: Any, slope: Any, reference: Any, columns: Any) -> Any:
    """:func:`_measure` of hyperbolic pairs and :func:`_add` in one pass, which leaves the product."""
    bad, total, exponentials = _ZERO, _ZERO, _ZERO
    for j in range(q.size):
        p = q[j]
        bad += _ZERO if p > near * sinh[j] else _ONE
        d = _log1p(p + math.sqrt(p * (p + _TWO)))
        total += d
        e = _exp(slope * d - reference)
        exponentials += e
        columns[j] += e
    return bad, total, exponentials


@jit(SUMS)
def reduce_tile(
    product: Any, first: int, places: Any, near: Any, sinh: Any, rows: Any, columns: Any,
    slope: float, has_common: bool, common: float, spread: float, kind: Any,
) -> Any:  # fmt: skip
    """Add a tile's exponentials to the sums of its rows and columns.

    Parameters
    ----------
    product : float32, shape (n, m)
        Overwritten.
    first : int
        The tile's first column.
    places : int64, shape (n, 3)
        For each row, the columns with its own caption: from, to, and the one that is its own.
    near : float32, shape (n,)
    sinh : float32, shape (m,)
        A pair is too near if not Q > near·sinh.
    rows, columns : float64, shape (n, 2) and (m, 2)
        The reference of each sum, and the sum.
    slope, common, spread : float
        Logits are slope·V; ``common`` is the reference of all sums, if they have one; ``spread`` is
        how far from it a tile's logits may be.
    kind : tuple of bool
        Hyperbolic, by row, by column, negatives.

    Returns
    -------
    int, float, float
        What became of it; the reference of a shared tile; ΣV over its negatives.
    """
    hyperbolic, by_row, by_column, negatives = kind
    n, m = product.shape
    scale = _f4(slope)
    total, bad = 0.0, _ZERO
    # A tile's own sums. Those of columns are float32, as the exponentials are, and of at most ROWS terms;
    # they reach the running sums, float64, only once the tile is known to be right. One that is not is made
    # again, and would be counted twice.
    fresh, sums = np.zeros(m, np.float32), np.zeros(n, np.float64)
    if has_common and hyperbolic:
        base = _f4(common)
        for i in range(n):
            starts, stops = _stretches(places[i, 0], places[i, 1], places[i, 2], first, m, negatives)
            for k in range(4):
                a, b = starts[k], stops[k]
                wrong, more, e = _measure_and_add(
                    product[i, a:b], near[i], sinh[a:b], scale, base, fresh[a:b]
                )
                bad += wrong
                sums[i] += e
                total += more if negatives and k < 2 else _ZERO
        if bad != 0:
            return CAREFUL, 0.0, 0.0
        # All sums have this reference, so a tile's are added as they are.
        _commit(rows, columns, sums, fresh, by_row, by_column)
        return SHARED, common, total
    for i in range(n):
        starts, stops = _stretches(places[i, 0], places[i, 1], places[i, 2], first, m, negatives)
        for k in range(4):
            a, b = starts[k], stops[k]
            wrong, more = _measure(product[i, a:b], near[i], sinh[a:b], hyperbolic)
            bad += wrong
            total += more if negatives and k < 2 else _ZERO
    if bad != 0:
        return CAREFUL, 0.0, 0.0
    fate, reference = SHARED, common
    if not has_common:
        fate, reference = _raise_tops(
            product, first, places, rows, columns, scale, spread, by_row, by_column, negatives
        )
    base, tops = _f4(reference), columns[:, 0].astype(np.float32)
    for i in range(n):
        starts, stops = _stretches(places[i, 0], places[i, 1], places[i, 2], first, m, negatives)
        for k in range(4):
            a, b = starts[k], stops[k]
            if fate == SHARED:
                sums[i] += _add(product[i, a:b], scale, base, fresh[a:b])
            else:
                sums[i] += _add_apart(product[i, a:b], scale, _f4(rows[i, 0]), tops[a:b], fresh[a:b])
    if fate == SHARED:
        _commit_from(rows, columns, sums, fresh, reference, by_row, by_column)
    else:
        _commit(rows, columns, sums, fresh, by_row, by_column)
    return fate, reference, total


@jit(EXACT)
def _commit(rows: Any, columns: Any, sums: Any, fresh: Any, by_row: bool, by_column: bool) -> None:
    if by_row:
        for i in range(sums.size):
            rows[i, 1] += sums[i]
    if by_column:
        for j in range(fresh.size):
            columns[j, 1] += fresh[j]


@jit(EXACT)
def _commit_from(
    rows: Any, columns: Any, sums: Any, fresh: Any, reference: float, by_row: bool, by_column: bool
) -> None:
    """Add sums that have another reference."""
    if by_row:
        for i in range(sums.size):
            # A sum without terms may have -Inf for its reference, and 0 times e^Inf would be NaN.
            rows[i, 1] += sums[i] * math.exp(reference - rows[i, 0]) if sums[i] > 0 else 0.0
    if by_column:
        for j in range(fresh.size):
            columns[j, 1] += fresh[j] * math.exp(reference - columns[j, 0]) if fresh[j] > 0 else 0.0


@jit(SUMS)
def _raise_tops(
    v: Any, first: int, places: Any, rows: Any, columns: Any, slope: Any, spread: float,
    by_row: bool, by_column: bool, negatives: bool,
) -> Any:  # fmt: skip
    """Make the references of rows and columns the largest logit so far; whether one can serve the tile."""
    n, m = v.shape
    lowest, least = np.full(n, np.inf, np.float32), np.full(m, np.inf, np.float32)
    for i in range(n):
        starts, stops = _stretches(places[i, 0], places[i, 1], places[i, 2], first, m, negatives)
        for k in range(4):
            a, b = starts[k], stops[k]
            lowest[i] = min(lowest[i], _least(v[i, a:b], least[a:b]))
    highest, bottom = -math.inf, math.inf
    for i in range(n):
        if lowest[i] < math.inf:
            highest = max(highest, slope * lowest[i])
    if by_row:
        bottom = min(bottom, _raise(rows, lowest, slope))
    if by_column:
        bottom = min(bottom, _raise(columns, least, slope))
    # The reference is ``spread`` below the largest logit, and no sum's own is more than ``spread`` below
    # that.
    if highest - bottom <= 2 * spread:
        return SHARED, highest - spread
    return TWICE, 0.0


@jit(EXACT)
def _raise(sums: Any, least: Any, slope: Any) -> float:
    """Raise references to slope times ``least``; the lowest of those."""
    lowest = math.inf
    for j in range(least.size):
        top = slope * least[j] if least[j] < math.inf else -math.inf
        # Strictly: two of -Inf have no difference.
        if top > sums[j, 0]:
            sums[j, 1] *= math.exp(sums[j, 0] - top)
            sums[j, 0] = top
        lowest = min(lowest, sums[j, 0])
    return lowest


@jit(SUMS)
def _differentiate(
    q: Any, slope: Any, reference: Any, grad_row: Any, grad_columns: Any, scale: Any, pull: Any
) -> Any:
    """dL/dproduct of hyperbolic pairs in its place; Σ V dL/dlogit and Σ V dL/ds."""
    grad_scale, grad_root = _ZERO, _ZERO
    for j in range(q.size):
        p = q[j]
        sinh = math.sqrt(p * (p + _TWO))
        d = _log1p(p + sinh)
        h = _exp(slope * d - reference) * (grad_row + grad_columns[j])
        g = scale * h + pull
        grad_scale += h * d
        grad_root += g * d
        q[j] = g / sinh
    return grad_scale, grad_root


@jit(SUMS)
def _differentiate_small(
    q: Any, slope: Any, reference: Any, grad_row: Any, grad_columns: Any, scale: Any, pull: Any,
    row: Any, polar: Any,
) -> Any:  # fmt: skip
    """The same, with -Σ G dL/ds in place of Σ V dL/ds."""
    grad_scale, grad_root = _ZERO, _ZERO
    f1, c1, g1 = row
    f2, c2, g2 = polar
    for j in range(q.size):
        p = q[j]
        sinh = math.sqrt(p * (p + _TWO))
        d = _log1p(p + sinh)
        h = _exp(slope * d - reference) * (grad_row + grad_columns[j])
        g = scale * h + pull
        z = d * d
        series = _f4(-17 / 20160) + z * _f4(31 / 362880)
        series = d * z * (_f4(-1 / 12) + z * (_f4(1 / 120) + z * series))
        # ``bend`` of layout, with tanh(D/2) = (cosh D - 1)/sinh D = Q/sinh D: one division serves two terms.
        bent = (f1 - f2[j]) * (c1 - c2[j]) + p * (g1 + g2[j])
        grad_scale += h * d
        grad_root -= g * (series + bent / sinh)
        q[j] = g / sinh
    return grad_scale, grad_root


@jit(SUMS)
def _differentiate_apart(
    q: Any, slope: Any, row_log: Any, column_logs: Any, grad_row: Any, grad_columns: Any,
    scale: Any, pull: Any, hyperbolic: bool,
) -> Any:  # fmt: skip
    """:func:`_differentiate` with an exponential for the row's sum and another for the column's."""
    grad_scale, grad_root = _ZERO, _ZERO
    if hyperbolic:
        # Where one of the sums has no share its gradient is 0 here, and _exp stops at e^88: 0 times a number.
        for j in range(q.size):
            p = q[j]
            sinh = math.sqrt(p * (p + _TWO))
            d = _log1p(p + sinh)
            h = grad_row * _exp(slope * d - row_log) + grad_columns[j] * _exp(slope * d - column_logs[j])
            g = scale * h + pull
            grad_scale += h * d
            grad_root += g * d
            q[j] = g / sinh
    else:
        for j in range(q.size):
            v = q[j]
            h = grad_row * _exp(slope * v - row_log) + grad_columns[j] * _exp(slope * v - column_logs[j])
            grad_scale += h * v
            q[j] = scale * h + pull
    return grad_scale, grad_root


@jit(SUMS)
def _differentiate_cosines(
    v: Any, slope: Any, reference: Any, grad_row: Any, grad_columns: Any, scale: Any, pull: Any
) -> Any:
    """dL/dV in place of V; Σ V dL/dlogit."""
    grad_scale = _ZERO
    for j in range(v.size):
        h = _exp(slope * v[j] - reference) * (grad_row + grad_columns[j])
        grad_scale += h * v[j]
        v[j] = scale * h + pull
    return grad_scale, _ZERO


@jit(SUMS)
def differentiate_tile(
    product: Any, first: int, places: Any, rows: Any, columns: Any, polar_rows: Any, polar_columns: Any,
    slope: float, shared: bool, reference: float, scale: float, pull: float, kind: Any,
) -> Any:  # fmt: skip
    """Replace a tile's product by minus √c times the gradient of the loss with respect to it.

    Parameters
    ----------
    product, first, places, slope, kind
        As of :func:`reduce_tile`.
    rows, columns : float64, shape (n, 2) and (m, 2)
        The log-sum-exps, and the gradients of the loss with respect to them.
    polar_rows : float32, shape (n, 3)
        r/sinh r - 1, cosh r - 1 and r coth r - 1, where all radii are small; else of shape (0, 3).
    polar_columns : three of float32, shape (m,)
        The same of the columns.
    shared, reference : bool, float
        Whether one exponential serves rows and columns, and what it is relative to.
    scale, pull : float
        τ, and dL/ds of a negative from the mean over negatives.

    Returns
    -------
    float, float
        Σ V dL/dlogit, and Σ V dL/ds; where all radii are small, -Σ G dL/ds instead of this.
    """
    hyperbolic, by_row, by_column, negatives = kind
    small = len(polar_rows) > 0
    n, m = product.shape
    rate, tau, base = _f4(slope), _f4(scale), _f4(reference)
    grad_columns, logs = np.zeros(m, np.float32), columns[:, 0].astype(np.float32)
    if by_column:
        for j in range(m):
            # e^(l - L) = e^(l - reference) e^(reference - L): the second factor is the row's or the column's
            # and goes with its gradient, so that a pair has one exponential. float64: L may be far from the
            # reference.
            grad_columns[j] = _f4(columns[j, 1] * (math.exp(reference - columns[j, 0]) if shared else 1.0))
    grad_scale, grad_root = 0.0, 0.0
    for i in range(n):
        grad_row = _ZERO
        if by_row:
            grad_row = _f4(rows[i, 1] * (math.exp(reference - rows[i, 0]) if shared else 1.0))
        starts, stops = _stretches(places[i, 0], places[i, 1], places[i, 2], first, m, negatives)
        for k in range(4):
            a, b = starts[k], stops[k]
            q, grads, force = product[i, a:b], grad_columns[a:b], _ZERO
            if negatives and k < 2:
                force = _f4(pull)
            if not shared:
                more, turn = _differentiate_apart(
                    q, rate, _f4(rows[i, 0]), logs[a:b], grad_row, grads, tau, force, hyperbolic
                )
            elif not hyperbolic:
                more, turn = _differentiate_cosines(q, rate, base, grad_row, grads, tau, force)
            elif small:
                row = polar_rows[i, 0], polar_rows[i, 1], polar_rows[i, 2]
                f, c, g = polar_columns
                more, turn = _differentiate_small(
                    q, rate, base, grad_row, grads, tau, force, row, (f[a:b], c[a:b], g[a:b])
                )
            else:
                more, turn = _differentiate(q, rate, base, grad_row, grads, tau, force)
            grad_scale += more
            grad_root += turn
        # Matched pairs are differentiated from differences, and what is hidden has no gradient: 0, since the
        # products that follow take the whole tile. Two stretches of a tile without negatives leave one gap.
        if negatives:
            own = places[i, 2] - first
            if 0 <= own < m:
                product[i, own] = _ZERO
        else:
            product[i, stops[0] : starts[1]] = _ZERO
    return grad_scale, grad_root
