from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from riemann_unlearn.report.figures import (
    before_after_bars,
    drawing,
    figure_svg,
    loss_curves,
    loss_ends,
)
from riemann_unlearn.report.tables import Measured

HOSTILE = "<script>\"&'$\\frac$ 🍎 \N{RIGHT-TO-LEFT OVERRIDE}قط\x00"


def plotted(text: str = "x") -> Figure:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=text)
    axes.imshow([[0.0, 1.0]])
    axes.set_title(text)
    axes.legend()
    return figure


def svg(text: str = "x", name: str = "a") -> str:
    with drawing():
        return figure_svg(plotted(text), name, text, text)


def test_a_figure_is_the_same_in_every_run_whatever_the_user_draws_with() -> None:
    plain = svg()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": None}):
        assert svg() == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_two_figures_can_share_a_page() -> None:
    pair = ElementTree.fromstring(f"<p>{svg(name='a')}{svg(name='b')}</p>")
    ids = [element.attrib["id"] for element in pair.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    text = ElementTree.tostring(pair, encoding="unicode")
    used = {*re.findall(r"url\(#([^)]+)\)", text), *re.findall(r'href="#([^"]+)"', text)}
    assert used
    assert used <= set(ids)
    # Nothing that would reach over to the rest of the page, or out of it.
    assert not [element for element in pair.iter() if element.tag in ("style", "metadata", "script")]
    assert "http" not in text


def test_who_does_not_see_a_figure_is_told_of_it_and_text_stays_text() -> None:
    root = ElementTree.fromstring(svg("owls"))
    assert root.attrib["role"] == "img"
    assert [child.tag for child in root][:2] == ["title", "desc"]
    assert (root[0].text, root[1].text) == ("owls", "owls")
    assert root.attrib["aria-labelledby"] == root[0].attrib["id"]
    assert "owls" in [element.text for element in root.iter("text")]


def test_black_is_the_colour_of_the_page_s_text() -> None:
    assert "#000000" not in svg()
    assert "stroke: currentColor" in svg()
    assert 'fill="currentColor"' in svg()


def test_any_text_can_be_drawn_and_told() -> None:
    root = ElementTree.fromstring(svg(HOSTILE))
    expected = HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    assert root[0].text == expected
    assert expected in [element.text for element in root.iter("text")]
    assert "<script>" not in svg(HOSTILE)


@pytest.mark.parametrize("steps", [1, 2, 300, 1001])
def test_every_loss_term_is_a_curve(steps: int) -> None:
    history = [{"step": n, "loss": 1.0, "a_loss": 1.0 / (n + 1), "b_loss": -5.0} for n in range(steps)]
    with drawing():
        figure = loss_curves(history)
        assert figure is not None
        lines = figure.axes[0].get_lines()
        assert [line.get_label() for line in lines] == ["a", "b"]
        assert all(np.size(line.get_xdata()) <= 300 for line in lines)
        assert "<svg" in figure_svg(figure, "loss", "t", "d")


def test_a_term_may_be_missing_from_a_step_or_not_be_finite() -> None:
    history = [{"a_loss": 1.0}, {"b_loss": 2.0}, {"a_loss": math.nan, "b_loss": math.inf}]
    assert list(loss_ends(history)) == ["a_loss", "b_loss"]
    assert loss_ends(history)["b_loss"] == (2.0, math.inf)
    with drawing():
        figure = loss_curves(history)
        assert figure is not None
        assert "<svg" in figure_svg(figure, "loss", "t", "d")


@pytest.mark.parametrize("history", [[], [{"step": 1, "loss": 1.0}]])
def test_without_terms_there_are_no_curves(history: list[dict[str, float]]) -> None:
    assert loss_curves(history) is None


def test_what_was_not_measured_has_no_bar() -> None:
    shares = {"forget": (None, None), "retain": (0.5, 0.25)}
    with drawing():
        figure = before_after_bars([Measured("a", shares, 0.1), Measured("b", shares, None)])
        widths = [
            [round(bar.get_width()) for bar in axes.patches if isinstance(bar, Rectangle)]
            for axes in figure.axes
        ]
        assert widths == [[0, 0, 0, 0], [50, 50, 25, 25]]
        assert "<svg" in figure_svg(figure, "bars", "t", "d")
