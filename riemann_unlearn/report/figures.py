"""Figures of the full audit as inline SVG: curves, heat maps, radii, and ways to the origin."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from riemann_unlearn.report.audit_tables import ROLE_NAMES

ROLE_COLOURS = {"before": "#8a97a8", "after": "#2563a8", "oracle": "#15803d"}
_WHITE, _BLUE, _ORANGE = np.array([255, 255, 255]), np.array([37, 99, 168]), np.array([194, 65, 12])


def shots_chart(title: str, curves: dict[str, tuple[list[int], list[float]]], chance: float | None) -> str:
    """Shares in [0, 1] against the number of shots, which doubles from tick to tick; 0 is drawn at the left.

    Parameters
    ----------
    title : str
    curves : dict
        By role, the numbers of shots and the share at each.
    chance : float or None
        Drawn as a line.
    """
    ticks = sorted({n for shots, _ in curves.values() for n in shots})
    place = {n: 46 + 300 * i / max(1, len(ticks) - 1) for i, n in enumerate(ticks)}

    def height(share: float) -> float:
        return 150 - 130 * share

    grid = "".join(
        f'<path class="grid" d="M46 {height(share):.0f}H346"/>'
        f'<text x="40" y="{height(share) + 4:.0f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.5, 1)
    )
    labels = "".join(f'<text x="{x:.0f}" y="168" text-anchor="middle">{n}</text>' for n, x in place.items())
    lines = ""
    for role, (shots, shares) in curves.items():
        points = [(place[n], height(share)) for n, share in zip(shots, shares, strict=True)]
        colour = ROLE_COLOURS[role]
        lines += f'<polyline stroke="{colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        lines += "".join(f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    if chance is not None:
        lines += f'<path class="chance" d="M46 {height(chance):.1f}H346"/>'
    picture = (
        f'<svg viewBox="0 0 360 190" role="img" aria-label="{escape(title)}"><g class="axis">{grid}{labels}'
        f'<text x="196" y="186" text-anchor="middle">shots</text></g>{lines}</svg>'
    )
    return _figure(picture, f"<b>{escape(title)}</b> {_legend(list(curves))}", "chart")


def heat_map(
    title: str, matrix: list[list[float]], forgotten: int, bounds: tuple[float, float], *, signed: bool
) -> str:
    """A matrix in colours, with a line between the forgotten pairs and the retained ones.

    Parameters
    ----------
    title : str
    matrix : list of list of float
        Square.
    forgotten : int
        Rows and columns before the line.
    bounds : tuple of float
        The lowest and the highest value of the scale.
    signed : bool
        Whether 0 is white, what is above it orange and what is below blue; else the scale goes from white
        to blue.
    """
    low, high = bounds
    values = np.array(matrix)
    if signed:
        share = values / (max(-low, high) or 1.0)
        target = np.where((values > 0)[..., None], _ORANGE, _BLUE)
    else:
        share, target = (values - low) / ((high - low) or 1.0), _BLUE
    colours = _WHITE + np.abs(share)[..., None] * (target - _WHITE)
    buffer = io.BytesIO()
    Image.fromarray(colours.round().astype(np.uint8)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    n = len(matrix)
    picture = (
        f'<svg class="matrix" viewBox="0 0 {n} {n}" role="img" aria-label="{escape(title)}">'
        f'<image href="data:image/png;base64,{data}" width="{n}" height="{n}"/>'
        f'<path d="M{forgotten} 0V{n}M0 {forgotten}H{n}"/></svg>'
    )
    return _figure(picture, f"<b>{escape(title)}</b>, {low:.2f} to {high:.2f}", "map")


def radii_chart(radii: dict[str, dict[str, dict[str, list[float] | None]]]) -> str:
    """Quantiles of the radii by kind of embedding, group and model: 5 to 95 % a line, 25 to 75 % a bar.

    Parameters
    ----------
    radii : dict
        ``radii[role][kind][group]`` as in :func:`riemann_unlearn.evaluation.hierarchy.hierarchy`.
    """
    first = next(iter(radii.values()))
    present = [
        (kind, group)
        for kind in first
        for group in ("forget", "retain")
        if any(of_role[kind][group] is not None for of_role in radii.values())
    ]
    most = max(q[-1] for r in radii.values() for kind in r.values() for q in kind.values() if q is not None)
    step, parts = 10 * len(radii) + 10, []
    for i, (kind, group) in enumerate(present):
        top = 12 + step * i
        parts.append(f'<text x="150" y="{top + step / 2:.0f}" text-anchor="end">{kind}, {group}</text>')
        for j, (role, of_role) in enumerate(radii.items()):
            quantiles = of_role[kind][group]
            if quantiles is None:
                continue
            x = [160 + 480 * q / most for q in quantiles]
            y, colour = top + 6 + 10 * j, ROLE_COLOURS[role]
            parts.append(
                f'<path stroke="{colour}" d="M{x[0]:.1f} {y}H{x[4]:.1f}"/>'
                f'<rect fill="{colour}" x="{x[1]:.1f}" y="{y - 3}" width="{max(4.0, x[3] - x[1]):.1f}" '
                f'height="6"/><path stroke="#fff" d="M{x[2]:.1f} {y - 3}V{y + 3}"/>'
            )
    height = 12 + step * len(present)
    ticks = "".join(
        f'<text x="{160 + 480 * k / 4:.0f}" y="{height + 14}" text-anchor="middle">{most * k / 4:.2f}</text>'
        f'<path class="grid" d="M{160 + 480 * k / 4:.0f} 8V{height}"/>'
        for k in range(5)
    )
    picture = (
        f'<svg viewBox="0 0 660 {height + 20}" role="img" aria-label="radii"><g class="axis">{ticks}</g>'
        f'<g font-size="12" fill="#1c2430">{"".join(parts)}</g></svg>'
    )
    return _figure(picture, f"<b>Radii r = √c·|v|</b>, 5, 25, 50, 75 and 95 % {_legend(list(radii))}", "wide")


def traversal_chart(traversals: dict[str, list[dict[str, Any]]]) -> str:
    """Ways from images to the origin, one strip a model, each caption as wide as its share of the way.

    The captions are those whose cone holds the point where most ways meet such a one, else the nearest.

    Parameters
    ----------
    traversals : dict
        By role, as in :func:`riemann_unlearn.evaluation.hierarchy.hierarchy`; the same images for each.
    """
    ways = [way for of_role in traversals.values() for way in of_role]
    with_cones = sum(any(caption for caption, _ in way["by_cone"]) for way in ways)
    kind = "by_cone" if 2 * with_cones > len(ways) else "by_distance"
    rows = []
    for same in zip(*traversals.values(), strict=True):
        shown = same[0]
        strips = "".join(
            f'<div class="way" style="--role:{ROLE_COLOURS[role]}">'
            f'<span class="role">{ROLE_NAMES[role]}</span>{_strip(way[kind])}</div>'
            for role, way in zip(traversals, same, strict=True)
        )
        group = "forgotten" if shown["group"] == "forget" else "neighbour"
        rows.append(
            f'<div class="walk"><div><img src="{escape(shown["image"])}" alt="" width="48" height="48"/><br/>'
            f"{escape(shown['name'])}<br/><small>{group}</small></div><div>{strips}</div></div>"
        )
    what = "the nearest caption whose cone holds the point" if kind == "by_cone" else "the nearest caption"
    return _figure(
        "".join(rows),
        f"<b>From the image (left) to the origin (right)</b>: {what}; blank where there is none "
        f"{'' if kind == 'by_cone' else 'nearer than the origin'}",
        "wide",
    )


def _strip(path: list[Any]) -> str:
    cells = []
    for caption, share in path:
        style = f"flex:{share:g} 1 0"
        if caption is None:
            cells.append(f'<span style="{style}"></span>')
        else:
            text = escape(caption)
            cells.append(f'<span class="met" title="{text}" style="{style}">{text}</span>')
    return f'<div class="strip">{"".join(cells)}</div>'


def _legend(roles: list[str]) -> str:
    return " ".join(f'<span style="color:{ROLE_COLOURS[role]}">■ {ROLE_NAMES[role]}</span>' for role in roles)


def _figure(picture: str, caption: str, kind: str) -> str:
    return f'<figure class="{kind}">{picture}<figcaption>{caption}</figcaption></figure>'


def bounds_of(matrices: list[list[list[float]]]) -> tuple[float, float]:
    """Lowest and highest entry of several matrices, for one scale of colours."""
    values = [value for matrix in matrices for row in matrix for value in row]
    return min(values), max(values)
