"""The cone op against the geometry's exterior angle and half aperture, elementwise in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riemann_unlearn.losses import functional
from riemann_unlearn.ops import Cones, cones
from riemann_unlearn.ops.cones import op, reference
from tests.ops.dispatch import force
from tests.ops.test_contrastive import B, D, batch, directions, error, gradients, leaves


@pytest.fixture(params=["numba", "vectors"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled loops, or torch."""
    if request.param == "vectors":
        force(monkeypatch, cones="vectors")


def total(found: Cones) -> Tensor:
    weights = torch.linspace(1, 2, B).double()
    hinges = found.outside.clamp(min=0) - 0.5 * (-found.outside).clamp(min=0)
    return (weights * (hinges + 0.1 * found.broad_radius.square() + found.narrow_radius)).mean()


@pytest.mark.parametrize(
    ("kind", "radius"),
    [
        *(("random", r) for r in (1e-6, 0.1, 1.0, 3.0, 10.0, 50.0, 300.0)),
        *(("clustered", r) for r in (0.3, 1.0, 3.0, 8.0)),
    ],
)
def test_float32_is_right_wherever_the_features_lie(kind: str, radius: float) -> None:
    sides, c = batch(kind, radius), torch.tensor(0.7)
    inputs, references = leaves(*sides, c), leaves(*(side.double() for side in sides), c.double())
    got, want = total(cones(*inputs)), total(reference(*references))
    assert error(got, want) < 1e-6
    for mine, theirs in zip(gradients(got, inputs), gradients(want, references), strict=True):
        assert mine.isfinite().all()
        assert error(mine, theirs) < 1e-5


def test_images_ahead_behind_beside_and_at_their_captions() -> None:
    """On the axis, where the angle has a kink, and where there is no angle: gradient 0, as the geometry's."""
    text = directions(B, 1) * 2
    beside = directions(B, 2)
    for image in (1.5 * text, 0.5 * text, -text, text.clone(), 0 * text, text + 1e-3 * beside):
        inputs = leaves(text, image, torch.tensor(1.0))
        references = leaves(text.double(), image.double(), torch.tensor(1.0).double())
        found, want = cones(*inputs), reference(*references)
        assert torch.allclose(found.outside, want.outside, atol=1e-6)
        assert all(g.isfinite().all() for g in gradients(total(found), inputs))
    at_origin = leaves(0 * text, beside, torch.tensor(1.0))
    found = cones(*at_origin)
    assert torch.allclose(found.outside, torch.tensor(-torch.pi / 2).double())
    assert gradients(found.outside.sum(), at_origin)[0].abs().max() == 0


def test_gradients_match_differences() -> None:
    text, image = (side[:6, :8].double() for side in batch("random", 1.0))

    def value(text: Tensor, image: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return tuple(cones(text, image, c))

    assert torch.autograd.gradcheck(value, leaves(text, image, torch.tensor(0.7).double()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
def test_torch_finds_nothing_wrong_with_the_operator() -> None:
    text, image = (side[:12] for side in batch("random", 1.0))
    results = torch.library.opcheck(op._forward, (*leaves(text, image, torch.tensor(1.0)), 0.1))
    assert set(results.values()) == {"SUCCESS"}


def test_where_there_are_no_kernels_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    text, image = (side.double() for side in batch("random", 1.0))
    want = cones(text, image, 0.7)
    force(monkeypatch, cones="reference")
    for mine, theirs in zip(cones(text, image, 0.7), want, strict=True):
        assert torch.allclose(mine, theirs)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    check_that_it_is_seen(bad, "cpu")


def check_that_it_is_seen(bad: float, device: str) -> None:
    text, image = directions(4, 1).to(device), directions(4, 2).to(device)
    nothing = torch.zeros(4, dtype=torch.bool, device=device)
    for broken in (text, image):
        kept = broken[1, 2].item()
        broken[1, 2] = bad
        found = cones(text, image, 1.0)
        assert found.outside.isnan().tolist() == [False, True, False, False]
        assert functional.entailment(found, ~nothing).isnan()
        broken[1, 2] = kept


def test_bad_arguments_are_refused() -> None:
    text = torch.zeros(3, D)
    with pytest.raises(ValueError, match=r"one shape \(B, D\), got \(3, 32\) and \(2, 32\)"):
        cones(text, text[:2], 1.0)
    with pytest.raises(ValueError, match="c must be positive, got -1"):
        cones(text, text, -1.0)
    with pytest.raises(TypeError, match="floating-point"):
        cones(text.long(), text, 1.0)
