"""The watch over a run: what it measures, what it says, where it finds the first bad number."""

from __future__ import annotations

import math
import warnings

import geoopt
import pytest
import torch
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn.diagnostics import StabilityWarning, safe_radius, watch
from riemann_unlearn.diagnostics.watcher import locate


def points(r: float, manifold: geoopt.Manifold) -> geoopt.ManifoldParameter:
    v = torch.nn.functional.normalize(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    x = ru.geometry.expmap0(v * r, 1.0)
    x = (
        ru.geometry.to_poincare(x, 1.0)
        if isinstance(manifold, geoopt.PoincareBall)
        else ru.geometry.to_ambient(x, 1.0)
    )
    return geoopt.ManifoldParameter(x, manifold=manifold)


@pytest.mark.parametrize("manifold", [ru.Lorentz(), geoopt.Lorentz(), geoopt.PoincareBall()])
def test_radii_are_those_of_the_points(manifold: geoopt.Manifold) -> None:
    figures = watch([points(3.0, manifold)]).step()
    assert figures["0/radius_50"] == pytest.approx(3.0, rel=1e-4)
    assert figures["0/radius_max"] == pytest.approx(3.0, rel=1e-4)
    assert figures["0/past_safe"] == 0.0
    assert figures["0/constraint_error"] <= 64 * torch.finfo(torch.float32).eps


def test_radii_of_tangent_vectors_are_their_lengths() -> None:
    v = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    watcher = watch([v], every=2)
    assert watcher.due
    figures = watcher.tangents("images", v, torch.tensor(4.0))
    assert figures["images/radius_50"] == 5.0
    assert figures["images/radius_max"] == 10.0
    watcher.step()
    assert not watcher.due


def test_it_warns_once_of_points_too_far_out() -> None:
    watcher = watch([points(12.0, ru.Lorentz())], every=1)
    with pytest.warns(StabilityWarning, match=r"past radius 10\.4"):
        assert watcher.step()["0/past_safe"] == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watcher.step()
    assert [record["step"] for record in watcher.history] == [1, 2]


def test_it_warns_of_points_off_the_manifold() -> None:
    parameter = points(1.0, ru.Lorentz())
    parameter.data[:, 0] *= 1.01
    with pytest.warns(StabilityWarning, match="off the manifold"):
        watch([parameter]).step()


def test_it_follows_an_optimizer_and_looks_every_few_steps() -> None:
    parameter = points(1.0, ru.Lorentz())
    optimizer = geoopt.optim.RiemannianAdam([parameter], lr=1e-2)
    watcher = watch([parameter], optimizer=optimizer, every=2)
    for _ in range(5):
        optimizer.zero_grad()
        ru.Lorentz().dist0(parameter).sum().backward()
        optimizer.step()
    assert [record["step"] for record in watcher.history] == [1, 3, 5]
    watcher.close()
    watcher.close()
    optimizer.step()
    assert watcher.steps == 5


def test_the_first_nonfinite_number_is_named() -> None:
    model = torch.nn.Linear(2, 1)
    x = torch.tensor([[0.0, 0.0]])

    def loss() -> Tensor:
        return (model(x) * 0).log().sum()

    loss().backward()
    watcher = watch(model)
    with pytest.warns(StabilityWarning, match="NaN or Inf in the gradient of weight, by step 1, from log"):
        watcher.step(closure=loss)
    assert watcher.first_nonfinite is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert watcher.step() == {}


def test_nonfinite_numbers_are_looked_for_ten_times_as_often_as_radii() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    watcher = watch([weight], every=50)
    watcher.step()
    weight.data[1] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            watcher.step()
    with pytest.warns(StabilityWarning, match="the value of 0, by step 6"):
        watcher.step()


def test_a_gradient_without_a_nonfinite_value_is_located_too() -> None:
    x = torch.zeros(1, requires_grad=True)
    assert locate(lambda: (x.sqrt() * 0).sum()) == "SqrtBackward0"
    assert locate(lambda: (x * 2).sum()) is None
    assert locate(lambda: torch.zeros(1)) is None


def test_large_sums_are_no_alarm() -> None:
    huge = torch.nn.Parameter(torch.full((4,), 3e38))
    watcher = watch([huge])
    watcher.step()
    assert watcher.first_nonfinite is None


def test_safe_radius_is_where_rounding_moves_a_point_by_a_thousandth() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        unit = torch.finfo(dtype).eps / 2
        assert unit * math.sinh(safe_radius(dtype)) == pytest.approx(1e-3, rel=1e-6)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="no parameter"):
        watch([])
    with pytest.raises(ValueError, match="every must be"):
        watch([torch.zeros(2, 3)], every=0)
