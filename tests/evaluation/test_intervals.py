from __future__ import annotations

import math

import pytest
import torch

from riemann_unlearn.evaluation.intervals import Z, mean_of_two, over_groups, wilson
from riemann_unlearn.evaluation.measures.base import percent


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (20, 20), (7, 20), (1, 1), (103, 211)])
def test_wilsons_ends_are_where_the_share_is_two_deviations_off(hits: int, n: int) -> None:
    """Its definition: a true share q at an end has |p - q| = z·√(q(1-q)/n)."""
    p = hits / n
    for end in wilson(p, n):
        assert 0 <= end <= 1
        assert abs(p - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n), abs=1e-9)
    low, high = wilson(p, n)
    assert low <= p <= high
    assert (low < p) == (hits > 0)
    assert (p < high) == (hits < n)


def test_z_is_the_normal_distributions() -> None:
    assert torch.distributions.Normal(0.0, 1.0).icdf(
        torch.tensor(0.975, dtype=torch.float64)
    ) == pytest.approx(Z)


def test_a_mean_is_surer_than_its_two_parts() -> None:
    low, high = mean_of_two(0.5, wilson(0.5, 50), 0.5, wilson(0.5, 50))
    alone = wilson(0.5, 100)
    # Two halves of a sample are the sample, but for Wilson's shrinking.
    assert (low, high) == pytest.approx(alone, abs=2e-3)
    # Each end comes of the ends on its own side.
    assert mean_of_two(0.0, (0.0, 0.2), 1.0, (0.9, 1.0)) == pytest.approx((0.45, 0.6))


def test_groups_are_drawn_whole() -> None:
    """Two groups of opposite answers: a draw is all of one in a quarter of the cases each."""
    low, high = over_groups([0.0, 1.0], [10, 10])
    assert (low, high) == (0.0, 1.0)
    many = over_groups([0.0, 1.0] * 50, [10] * 100)
    assert many == pytest.approx((0.4, 0.6), abs=0.02)  # 0.5 ± 1.96·√(0.25/100)
    # A group counts by its images.
    low, high = over_groups([0.0, 1.0], [1, 99], seed=1)
    assert (low, high) == (0.0, 1.0)
    skewed = over_groups([0.0, 1.0] * 50, [1, 99] * 50)
    assert skewed[0] > 0.9


def test_a_share_says_how_sure_it_is() -> None:
    assert percent(0.975) == "97.5"
    assert percent(None, 0) == percent(None) == "–"
    assert percent(0.0, 20) == "0.0 [0.0, 16.1] of 20"
