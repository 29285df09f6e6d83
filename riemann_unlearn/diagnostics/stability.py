r"""The numerical-stability audit: how many digits each operation of a manifold keeps, at each radius.

Every operation is run at each radius, in several regimes, and its value and its gradient are compared with
the exact ones *of the coordinates as they are stored*. The error is counted in units of the unavoidable:
the rounding of the result plus what a change of every coordinate by half a unit in its last place does to the
exact result. An error of a few units means that the operation keeps what its inputs know; an error of 10⁴
means that four digits were there and were lost.

What rounding a point's coordinates itself costs is reported beside it, as ``resolution``: no formula can help
with that, only another parametrization.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mpmath as mp
import torch
from torch import Tensor

from riemann_unlearn.diagnostics import reference as ref
from riemann_unlearn.diagnostics.subject import Subject, as_subject

RADII = (1e-6, 1e-3, 0.1, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0)
"""Radii √c·d of an audit when none are given."""
REGIMES = ("random", "near", "ray", "opposite", "same")
"""How the second point lies: anywhere at that radius, 1e-3 of it away, 10 % further out, opposite, equal."""
LIMIT = 256.0
"""Units of unavoidable error beyond which an operation is called unsafe: two and a half digits are lost."""

_DIM = 3


@dataclass(frozen=True)
class Record:
    """One operation at one radius in one regime; errors in units of unavoidable error."""

    operation: str
    regime: str
    radius: float
    error: float
    """Of the value; infinite when it is not finite."""
    gradient_error: float | None
    """Of the gradient; None where there is none (a kink) or the operation has no gradient."""
    ulps: float
    """Error of the value in units in its last place."""
    resolution: float
    """What half a unit in the last place of the coordinates does to the value, relative to it."""
    nonfinite: int
    """How many of the value's and the gradient's numbers are NaN or infinite."""


@dataclass(frozen=True)
class Row:
    """What the table says of an operation in a regime, over all radii."""

    operation: str
    regime: str
    worst: float
    median: float
    worst_gradient: float
    nonfinite: int
    safe_from: float
    safe_radius: float
    """The longest run of radii at which everything is finite and within the limit; 0 to 0 when nowhere."""


@dataclass(frozen=True)
class Audit:
    """The outcome of :func:`audit`."""

    name: str
    dtype: str
    c: float
    limit: float
    records: list[Record]
    skipped: list[str]
    """Points that the dtype cannot hold, in words."""

    @property
    def safe(self) -> bool:
        """Whether everything was finite and within the limit."""
        return not self.skipped and all(map(self._passes, self.records))

    @property
    def rows(self) -> list[Row]:
        """The table: one row an operation and regime."""
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            groups.setdefault((record.operation, record.regime), []).append(record)
        return [self._row(*key, records) for key, records in groups.items()]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; infinities as None."""
        whole = {**asdict(self), "safe": self.safe, "rows": [asdict(row) for row in self.rows]}
        cleaned: dict[str, Any] = _finite(whole)
        return cleaned

    def __str__(self) -> str:
        head = f"{self.name}  {self.dtype}  c = {self.c:g}  (errors in units of unavoidable error)"
        names = f"{'operation':15}{'regime':10}{'worst':>10}{'median':>10}{'gradient':>10}"
        lines = [head, f"{names}{'nan/inf':>9}{'safe':>12}"]
        for row in self.rows:
            lines.append(
                f"{row.operation:15}{row.regime:10}{_short(row.worst):>10}{_short(row.median):>10}"
                f"{_short(row.worst_gradient):>10}{row.nonfinite:9d}{_span(row):>12}"
            )
        lines += self.skipped
        lines.append("safe" if self.safe else f"not safe: errors beyond {self.limit:g} units, NaN or Inf")
        return "\n".join(lines)

    def _passes(self, record: Record) -> bool:
        within = max(record.error, record.gradient_error or 0.0) <= self.limit
        return within and record.nonfinite == 0

    def _row(self, operation: str, regime: str, records: list[Record]) -> Row:
        records = sorted(records, key=lambda record: record.radius)
        runs: list[list[float]] = [[]]
        for record in records:
            if self._passes(record):
                runs[-1].append(record.radius)
            else:
                runs.append([])
        run = max(runs, key=len) or [0.0]
        errors = [record.error for record in records]
        gradients = [record.gradient_error for record in records if record.gradient_error is not None]
        nonfinite = sum(record.nonfinite for record in records)
        worst_gradient = max(gradients, default=0.0)
        median = statistics.median(errors)
        return Row(operation, regime, max(errors), median, worst_gradient, nonfinite, run[0], run[-1])


def audit(
    manifold: Any = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    radii: Sequence[float] = RADII,
    c: float = 1.0,
    chart: str | None = None,
    operations: Sequence[str] | None = None,
    name: str | None = None,
    limit: float = LIMIT,
    seed: int = 0,
) -> Audit:
    """Measures the numerical stability of a manifold's operations.

    Parameters
    ----------
    manifold : object, optional
        A geoopt ``Lorentz`` or ``PoincareBall``, a module of functions of points and a curvature such as
        :mod:`riemann_unlearn.geometry`, or any object with some of the methods ``dist``, ``dist0``,
        ``expmap0``, ``logmap0``, ``expmap``, ``logmap``, ``transp``, ``half_aperture``, ``exterior_angle``.
        ``riemann_unlearn.Lorentz()`` when not given.
    dtype, device
        Of the points.
    radii : sequence of float
        Distances from the origin, in units of the curvature radius.
    c : float
        Curvature magnitude, for a module; an object says its own.
    chart : "ambient", "space", "ball" or "tangent", optional
        How an object that is not geoopt's stores its points; it may say so by an attribute ``chart``.
    operations : sequence of str, optional
        Which operations; all the manifold has when not given.
    name : str, optional
        What to call it.
    limit : float
        Units of unavoidable error that count as unsafe.
    seed : int
        Of the points.

    Returns
    -------
    Audit
        Prints as a table; has ``rows``, ``records``, ``safe`` and ``to_dict()``.

    Raises
    ------
    ValueError
        For an unknown operation or chart, and for radii or a curvature that are not positive.

    Examples
    --------
    >>> import geoopt, torch
    >>> audit(operations=["dist"], radii=[1.0, 10.0]).safe
    True
    >>> audit(geoopt.Lorentz(), operations=["dist"], radii=[1.0, 10.0]).safe
    False
    """
    if manifold is None:
        from riemann_unlearn.geometry import Lorentz

        manifold = Lorentz()
    if not radii or not all(0 < r < math.inf for r in radii):
        raise ValueError(f"radii must be positive and finite, got {list(radii)}")
    under = as_subject(manifold, name=name, chart=chart, c=c, dtype=dtype, device=device)
    chosen = list(under.functions) if operations is None else list(operations)
    for wanted in chosen:
        if wanted not in under.functions:
            raise ValueError(f"{under.name} has no operation {wanted!r}; it has {tuple(under.functions)}")
    generator = torch.Generator().manual_seed(seed)
    records, skipped = [], []
    for radius in sorted(radii):
        # Drawn for every regime, used or not: the points do not depend on which operations are audited.
        points = {regime: _arguments(under, regime, radius, dtype, generator) for regime in REGIMES}
        for operation in (ref.OPERATIONS[one] for one in chosen):
            paired = operation.arguments.count("point") == 2
            # With one point there is nothing for the regimes to tell apart.
            for regime in REGIMES if paired else ("random",):
                arguments = [points[regime][slot] for slot in _slots(operation)]
                kinds = operation.arguments
                if not all(_representable(under, *pair) for pair in zip(arguments, kinds, strict=True)):
                    # Said once for a radius, whose other regimes are left out.
                    skipped.append(f"{operation.name} at radius {radius:g}: {dtype} has no such point")
                    break
                records.append(_measure(under, operation, regime, radius, arguments, dtype))
    return Audit(under.name, str(dtype).removeprefix("torch."), under.c, limit, records, skipped)


def plot(audits: Sequence[Audit], path: str, operations: Sequence[str] | None = None) -> None:
    """Error against radius, one panel an operation and one line a library; worst over the regimes."""
    from matplotlib.figure import Figure

    names = list(operations or dict.fromkeys(r.operation for a in audits for r in a.records))
    columns = min(3, len(names))
    figure = Figure(figsize=(4 * columns, 2.8 * math.ceil(len(names) / columns)), layout="constrained")
    panels = figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False).flat
    for panel, name in zip(panels, names, strict=False):
        for number, one in enumerate(audits):
            worst: dict[float, float] = {}
            for record in one.records:
                if record.operation == name:
                    worst[record.radius] = max(worst.get(record.radius, 0.0), record.error)
            if worst:
                heights = [min(max(error, 0.1), 1e9) for error in worst.values()]
                panel.loglog(
                    list(worst), heights, marker="o", markersize=3, color=f"C{number}", label=one.name
                )
        panel.axhline(audits[0].limit, color="grey", linewidth=0.8, linestyle=":")
        panel.set(title=name, xlabel="radius", ylabel="error / unavoidable", ylim=(0.05, 2e9))
    for panel in list(panels)[len(names) :]:
        panel.set_visible(False)
    shown = [dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True)) for panel in figure.axes]
    # A library that has a line in several panels is named once.
    legend = {label: handle for panel in shown for label, handle in panel.items()}
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def _slots(operation: ref.Operation) -> list[str]:
    """Which of the arguments made by :func:`_arguments` an operation takes."""
    points = iter(("x", "y"))
    return [next(points) if kind == "point" else kind for kind in operation.arguments]


def _arguments(
    under: Subject, regime: str, radius: float, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, Tensor]:
    """Coordinates, rounded to ``dtype`` and held in float64."""
    first, second, third = torch.nn.functional.normalize(
        torch.randn(3, _DIM, generator=generator, dtype=torch.float64), dim=-1
    )
    other = {
        "random": second,
        "near": first + 1e-3 * second,
        "ray": 1.1 * first,
        "opposite": -first,
        "same": first,
    }[regime]
    # Terms of e^2r cancel to terms of 1, which takes 0.87 r digits; 3r is ample.
    with mp.workdps(60 + int(3 * radius)):
        c = mp.mpf(under.c)
        v, w, direction = (
            [mp.mpf(x) / mp.sqrt(c) for x in vector.tolist()] for vector in (first, other, third)
        )
        scaled = [[radius * x for x in vector] for vector in (v, w)]
        origin = [mp.mpf(0)] * _DIM
        x, y = (ref.expmap0(s, c) for s in scaled)
        # Of length one curvature radius at x, whatever the radius: transport keeps lengths.
        u = ref.transp(origin, x, direction, c)
        coordinates = {
            "x": under.chart.from_space(x, c),
            "y": under.chart.from_space(y, c),
            "vector": under.chart.pull(x, u, c),
            "vector0": under.chart.pull(origin, scaled[0], c),
        }
    return {
        # What was rounded here is the point from now on: the exact values are those of these coordinates.
        key: torch.tensor([float(t) for t in value], dtype=torch.float64).to(dtype).double()
        for key, value in coordinates.items()
    }


def _representable(under: Subject, a: Tensor, kind: str) -> bool:
    # A dtype's end shows as infinity, but in the ball as a point that was rounded onto its boundary.
    inside = under.chart is not ref.BALL or kind != "point" or under.c * float(a.square().sum()) < 1
    return bool(a.isfinite().all()) and inside


def _measure(
    under: Subject,
    operation: ref.Operation,
    regime: str,
    radius: float,
    arguments: list[Tensor],
    dtype: torch.dtype,
) -> Record:
    unit = torch.finfo(dtype).eps / 2
    leaves = [a.clone().requires_grad_() for a in arguments]
    value = under.functions[operation.name](*leaves).reshape(-1)
    # Weights that are exact in any dtype, so that the sum they make of a vector is one function.
    weights = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)[: len(value)]
    gradients: Sequence[Tensor | None] = [None] * len(leaves)
    if value.requires_grad:
        gradients = torch.autograd.grad((value * weights).sum(), leaves, allow_unused=True)
    # At a kink any subgradient is right, so there is nothing to compare it with.
    kink = (regime == "same" and operation.name in ("dist", "exterior_angle")) or (
        regime in ("ray", "opposite") and operation.name == "exterior_angle"
    )
    # What a result does not depend on gets no gradient from autograd, and 0 from the differences.
    found = [g if g is not None else torch.zeros_like(a) for g, a in zip(gradients, leaves, strict=True)]
    exact = [[mp.mpf(t) for t in a.tolist()] for a in arguments]
    # More than the coordinates needed: differences keep two thirds of the digits, and gradients cancel again.
    with mp.workdps(140 + int(5 * radius)):

        def total(moved: Sequence[ref.Vector]) -> mp.mpf:
            parts = ref.evaluate(operation, under.chart, moved, under.c)
            return mp.fsum(mp.mpf(w) * p for w, p in zip(weights.tolist(), parts, strict=True))

        # Three patterns of signs, for one may happen to move along a level set of the operation.
        shaken = [_shaken(exact, unit, number) for number in range(_DIM)]
        if regime == "same" and operation.name in ("dist", "logmap", "exterior_angle"):
            want = [mp.mpf(0)] * len(value)  # of the angle, which is not defined there, by convention
            moved = [mp.mpf(0)]
        else:
            want = ref.evaluate(operation, under.chart, exact, under.c)
            others = [ref.evaluate(operation, under.chart, s, under.c) for s in shaken]
            moved = [_largest([o - w for o, w in zip(other, want, strict=True)]) for other in others]
        size, shift = _largest(want), max(moved)
        finite = value.isfinite()
        off = [mp.mpf(g) - w for g, w in zip(value.tolist(), want, strict=True)] if finite.all() else [mp.inf]
        # The result has to be rounded, and its arguments were: neither can be held against the operation.
        error = _ratio(_largest(off), unit * size + shift)
        gradient_error = None
        if not kink and value.requires_grad:
            gradient_error = _gradient_error(total, exact, shaken[:2], found, unit)
    nonfinite = int((~finite).sum()) + sum(int((~g.isfinite()).sum()) for g in found)
    # `unit` is half of ε, so this is 2^e·ε for a size in [2^e, 2^(e+1)).
    ulp = mp.mpf(2) ** mp.floor(mp.log(size, 2)) * 2 * unit if size else mp.mpf(0)
    resolution = _ratio(shift, size)
    ulps = _ratio(_largest(off), ulp)
    return Record(operation.name, regime, radius, error, gradient_error, ulps, resolution, nonfinite)


def _gradient_error(
    total: Callable[[Sequence[ref.Vector]], mp.mpf],
    exact: list[ref.Vector],
    shaken: list[list[ref.Vector]],
    found: list[Tensor],
    unit: float,
) -> float:
    """The worst over the arguments, in units of unavoidable error."""
    if not all(g.isfinite().all() for g in found):
        return math.inf
    want = ref.exact_gradient(total, exact)
    others = [ref.exact_gradient(total, s) for s in shaken]
    worst = 0.0
    for which, gradient in enumerate(want):
        shift = max(
            _largest([o - w for o, w in zip(other[which], gradient, strict=True)]) for other in others
        )
        got = [mp.mpf(g) for g in found[which].tolist()]
        off = _largest([g - w for g, w in zip(got, gradient, strict=True)])
        worst = max(worst, _ratio(off, unit * _largest(gradient) + shift))
    return worst


def _shaken(exact: list[ref.Vector], unit: float, number: int) -> list[ref.Vector]:
    """The arguments with every coordinate moved by half a unit in its last place.

    The signs differ within every argument, for a point scaled as a whole stays on its ray.
    """
    return [
        [t + (unit if (axis + which + number) % _DIM else -unit) * t for axis, t in enumerate(argument)]
        for which, argument in enumerate(exact)
    ]


def _largest(values: Sequence[mp.mpf]) -> mp.mpf:
    return max(abs(v) for v in values)


def _ratio(error: mp.mpf, unit: mp.mpf) -> float:
    # Nothing is unavoidable where an exact 0 stays 0 when it is shaken: any error is then infinite.
    return float(error / unit) if unit else (math.inf if error else 0.0)


def _span(row: Row) -> str:
    return f"{row.safe_from:g} to {row.safe_radius:g}" if row.safe_radius else "nowhere"


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 1e3 else f"{value:.0e}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    # JSON has no word for infinity, and readers of it disagree on Python's.
    return None if isinstance(value, float) and not math.isfinite(value) else value
