"""The audit: it passes ours, fails the peers where they are known to fail, and speaks plainly."""

from __future__ import annotations

import json
import types
from pathlib import Path

import geoopt
import mpmath as mp
import pytest
import torch
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn import cli, geometry
from riemann_unlearn.diagnostics import audit, find
from riemann_unlearn.diagnostics import reference as ref

FEW = (1e-6, 1.0, 10.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("manifold", [ru.Lorentz(), geometry, geometry.tangent, ru.Lorentz(5.0)])
def test_ours_keeps_its_digits(manifold: object, dtype: torch.dtype) -> None:
    report = audit(manifold, dtype=dtype, radii=(1e-12, 1e-3, 1.0, 6.0, 20.0, 40.0))
    assert report.safe, str(report)
    assert not report.skipped
    assert "safe" in str(report)


def test_the_curvature_of_a_module_is_said() -> None:
    assert audit(geometry, radii=(0.1, 3.0), c=7.0).safe
    assert audit(ru.Lorentz(5.0), radii=[1.0], operations=["dist0"]).c == pytest.approx(0.2)


def test_geoopts_defects_are_seen() -> None:
    rows = {(r.operation, r.regime): r for r in audit(geoopt.Lorentz(), radii=(*FEW, 15.0)).rows}
    assert rows["dist", "same"].safe_radius < 10.0
    assert rows["logmap", "same"].worst > 1e6
    assert rows["expmap0", "random"].safe_from == FEW[0]
    assert rows["expmap0", "random"].safe_radius == 15.0
    assert rows["transp", "random"].worst > 256


def test_the_poincare_ball_ends_where_its_numbers_do() -> None:
    report = audit(geoopt.PoincareBall(), radii=(1.0, 20.0), operations=["dist"])
    assert report.skipped == ["dist at radius 20: torch.float32 has no such point"]
    assert not report.safe


class Half:
    """A manifold of a third party, wrong by a factor, without a gradient, and not finite far out."""

    chart = "space"
    c = 1.0

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return geometry.dist(x, y, 1.0).detach() / 2

    def expmap0(self, v: Tensor) -> Tensor:
        return v * torch.inf


def test_any_object_with_the_methods_can_be_audited() -> None:
    report = audit(Half(), radii=FEW, name="half")
    assert report.name == "half"
    assert {row.operation for row in report.rows} == {"dist", "expmap0"}
    assert not report.safe
    assert "nowhere" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["safe_radius"] == 0.0


def test_modules_with_other_names_are_understood() -> None:
    module = types.ModuleType("others")
    module.pairwise_dist = lambda x, y, c: geometry.cdist(x, y, c, fix_near="all")  # type: ignore[attr-defined]
    module.exp_map0 = geometry.expmap0  # type: ignore[attr-defined]
    report = audit(module, radii=(0.5, 5.0), chart="space")
    assert {row.operation for row in report.rows} == {"dist", "expmap0"}
    assert report.safe, str(report)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="say chart="):
        audit(object())
    with pytest.raises(ValueError, match="none of the operations"):
        audit(object(), chart="space")
    with pytest.raises(ValueError, match="no operation 'cdist'"):
        audit(operations=["cdist"])
    with pytest.raises(ValueError, match="radii must be positive"):
        audit(radii=[0.0])
    for c in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="c, the curvature magnitude, must be positive and finite"):
            audit(geometry, c=c)
    with pytest.raises(ValueError, match=r"in torch\.float32 it is 0\.0"):  # as float32 has it
        audit(geometry, c=1e-60, dtype=torch.float32)
    for target in ("riemann_unlearn:Nothing", "no.such.module", "/no/such/file.py"):
        with pytest.raises(ValueError, match="cannot load the manifold"):
            find(target)


def test_a_file_can_be_audited(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from riemann_unlearn.geometry import dist\n", encoding="utf-8")
    assert audit(find(str(path)), radii=[1.0], chart="space").safe


def test_the_command_prints_plots_and_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--radii", "1", "10", "--operations", "dist"]
    picture = tmp_path / "errors.svg"
    assert cli.main(["stability", *few, "--json", "--plot", str(picture)]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["safe"] is True
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    assert cli.main(["stability", *few, "--manifold", "geoopt:Lorentz"]) == 3
    assert "not safe" in capsys.readouterr().out
    assert cli.main(["stability", "--manifold", "no:thing"]) == 2


def test_the_reference_keeps_the_laws_of_its_own() -> None:
    """Charts invert, transport inverts, and the exact logarithm is what the exponential map undoes."""
    with mp.workdps(60):
        c = mp.mpf("0.7")
        x, y, u = ([mp.mpf(t) for t in row] for row in ([0.3, -1, 2], [1, 0.5, -0.25], [0.1, 0.2, 0.3]))
        small = mp.mpf(10) ** -50

        def near(a: ref.Vector, b: ref.Vector) -> bool:
            return all(abs(s - t) < small for s, t in zip(a, b, strict=True))

        assert near(ref.expmap(x, ref.logmap(x, y, c), c), y)
        assert near(ref.transp(y, x, ref.transp(x, y, u, c), c), u)
        for chart in ref.CHARTS.values():
            b = chart.from_space(x, c)
            assert near(chart.to_space(b, c), x)
        ball = ref.BALL
        pulled = ball.pull(x, u, c)
        assert near(ball.push(ball.from_space(x, c), pulled, c), u)
        assert ref.exact_gradient(lambda a: ref.dot(a[0], a[0]), [[mp.mpf(0)] * 2])[0] == [0, 0]
