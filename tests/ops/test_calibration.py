"""The calibration op against its terms in plain torch, with the matrix, in float64."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

import riemann_unlearn.ops.calibration  # noqa: F401
from riemann_unlearn.ops import calibration
from tests.ops.test_contrastive import (  # noqa: F401
    FORGET,
    IDS,
    B,
    batch,
    error,
    gradients,
    leaves,
    passes,
)

module = sys.modules["riemann_unlearn.ops.calibration"]  # the package's name for it is the function

WEIGHTS = (1.0, 0.3, 0.7, 0.05, 0.2, 0.5, 2.0)
NEITHER = torch.zeros(B, dtype=torch.bool)


@pytest.mark.parametrize(
    ("kind", "radius"),
    [
        *(("random", r) for r in (0.1, 1.0, 3.0, 20.0, 50.0)),
        *(("clustered", r) for r in (0.3, 3.0)),
        ("collapsed", 0.0),
        ("collapsed", 10.0),
    ],
)
def test_float32_is_right_wherever_the_features_lie(kind: str, radius: float, passes: str) -> None:  # noqa: F811
    sides, extra = batch(kind, radius), (torch.tensor(10.0), torch.tensor(0.7))
    inputs = leaves(*sides, *extra)
    references = leaves(*(v.double() for v in (*sides, *extra)))
    settings = {"weights": WEIGHTS, "caption_ids": IDS}
    got = calibration(*inputs, FORGET, **settings)
    want = module.reference(*references, FORGET, **settings)
    # The reference's product cannot tell where nothing is apart.
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-6) or kind == "collapsed"
    for mine, theirs in zip(gradients(got.sum(), inputs), gradients(want.sum(), references), strict=True):
        assert mine.isfinite().all()
        assert error(mine, theirs) < 1e-4 or kind == "collapsed"


@pytest.mark.parametrize("forget", [FORGET, NEITHER, ~NEITHER])
@pytest.mark.parametrize("target", [None, 0.0, 1.5])
def test_each_term_and_its_gradients_are_exact_in_float64(
    forget: Tensor,
    target: float | None,
    passes: str,  # noqa: F811
) -> None:
    values = [v.double() for v in (*batch("random", 1.0), torch.tensor(7.0), torch.tensor(0.7))]
    inputs, references = leaves(*values), leaves(*values)
    settings = {"weights": WEIGHTS, "min_radius": 0.2, "target_radius": target}
    got = calibration(*inputs, forget, **settings)
    want = module.reference(*references, forget, **settings)
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-13)
    for mine, theirs in zip(got, want, strict=True):
        found = torch.autograd.grad(mine, inputs, retain_graph=True)
        expected = torch.autograd.grad(theirs, references, retain_graph=True, materialize_grads=True)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
def test_torch_finds_nothing_wrong_with_the_operator() -> None:
    values = (*(side[:12] for side in batch("random", 1.0)), torch.tensor(5.0), torch.tensor(1.0))
    arguments = (*leaves(*values), FORGET[:12], IDS[:12], list(WEIGHTS), 0.1, None)
    assert set(torch.library.opcheck(module._forward, arguments).values()) == {"SUCCESS"}


def test_it_compiles_into_one_graph() -> None:
    eager, compiled = (leaves(*batch("random", 1.0)) for _ in range(2))

    def value(image: Tensor, text: Tensor) -> Tensor:
        return calibration(image, text, 5.0, 1.0, FORGET).sum()

    want, got = value(*eager), torch.compile(value, fullgraph=True, backend="aot_eager")(*compiled)
    assert torch.equal(got, want)
    for mine, theirs in zip(gradients(got, compiled), gradients(want, eager), strict=True):
        assert torch.equal(mine, theirs)


def test_where_there_are_no_kernels_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [side.double() for side in batch("random", 1.0)]
    want = calibration(*sides, 5.0, 0.7, FORGET)
    monkeypatch.setattr(module, "backend", lambda device: "reference")
    assert torch.allclose(calibration(*sides, 5.0, 0.7, FORGET), want)


def test_bad_arguments_are_refused() -> None:
    image, text = batch("random", 1.0)
    with pytest.raises(ValueError, match=r"one shape \(B, D\), got \(96, 32\) and \(95, 32\)"):
        calibration(image, text[1:], 5.0, 1.0, FORGET)
    with pytest.raises(ValueError, match=r"forget must be a bool tensor of shape \(96,\)"):
        calibration(image, text, 5.0, 1.0, FORGET[1:])
    with pytest.raises(ValueError, match="c must be positive, got 0"):
        calibration(image, text, 5.0, 0.0, FORGET)
