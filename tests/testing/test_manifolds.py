"""Our manifold keeps the laws; geoopt's, on which they are known to fail, does not."""

from __future__ import annotations

import geoopt
import pytest
import torch

import riemann_unlearn as ru
from riemann_unlearn.testing import ConeLaws, HyperbolicLaws


class TestLorentz(HyperbolicLaws):
    def make(self, c: float, dtype: torch.dtype) -> ru.Lorentz:
        return ru.Lorentz(torch.tensor(1 / c, dtype=dtype))

    @pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("radius", [5.9, 6.0, 6.1, 8.0])
    def test_exp_inverts_log_on_the_way_to_the_origin(
        self, radius: float, c: float, dtype: torch.dtype
    ) -> None:
        """Where hypothesis found that rounding the vector changes its length most."""
        self.exp_inverts_log(torch.tensor([radius]).double(), torch.zeros(1).double(), c, dtype)


class TestCones(ConeLaws):
    def make(self, c: float, dtype: torch.dtype) -> ru.Lorentz:
        return ru.Lorentz(torch.tensor(1 / c, dtype=dtype))


class Geoopts(HyperbolicLaws):
    def make(self, c: float, dtype: torch.dtype) -> geoopt.Lorentz:
        return geoopt.Lorentz(torch.tensor(1 / c, dtype=dtype))


@pytest.mark.parametrize(
    "law",
    [
        "test_distance_is_a_metric",
        "test_exp_inverts_log",
        "test_points_and_gradients_are_on_the_manifold",
        "test_everything_is_finite",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_law_can_fail(law: str) -> None:
    with pytest.raises(BaseException):  # noqa: B017, PT011 - a failed law, or several at once
        getattr(Geoopts(), law)()


def test_the_manifold_must_be_made() -> None:
    with pytest.raises(NotImplementedError):
        HyperbolicLaws().make(1.0, torch.float32)
