from __future__ import annotations

from typing import Any

import geoopt
import pytest
import torch
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn.losses import AlignmentCalibration
from riemann_unlearn.unlearning.index import unlearn_index

FORGET = torch.arange(96) < 12
MANIFOLDS = [ru.Lorentz(k=2.0), geoopt.Lorentz(k=2.0), geoopt.PoincareBall(c=0.5)]


def pairs(manifold: geoopt.Manifold) -> tuple[Tensor, Tensor]:
    """Texts, and images close by."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(96, 6, generator=generator)
    images = texts + 0.05 * torch.randn(96, 6, generator=generator)
    if isinstance(manifold, geoopt.Lorentz):
        stable = ru.Lorentz(k=2.0)
        pad = torch.nn.functional.pad
        return stable.expmap0(pad(images, (1, 0))), stable.expmap0(pad(texts, (1, 0)))
    return manifold.expmap0(images), manifold.expmap0(texts)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=["ours", "geoopt", "ball"])
def test_forgotten_pairs_part_and_the_rest_is_bitwise_the_same(manifold: Any) -> None:
    images, texts = pairs(manifold)
    copies = images.clone(), texts.clone()
    result = unlearn_index(
        images, texts, FORGET, manifold=manifold, steps=150, learning_rate=0.1, progress=False
    )
    before, after = result.metrics["before"], result.metrics["after"]
    for direction in ("image_to_text", "text_to_image"):
        assert before["forget"][f"{direction}_recall_at_1"] == 1.0
        assert after["forget"][f"{direction}_recall_at_1"] == 0.0
        assert (
            after["retain"][f"{direction}_recall_at_1"] >= before["retain"][f"{direction}_recall_at_1"] - 0.02
        )
    assert torch.equal(images, copies[0])
    assert torch.equal(texts, copies[1])
    assert torch.equal(result.images[~FORGET], images[~FORGET])
    assert torch.equal(result.texts[~FORGET], texts[~FORGET])
    assert not torch.equal(result.images[FORGET], images[FORGET])
    if not type(manifold).__module__.startswith("geoopt"):  # whose check refuses its own points
        assert manifold.check_point_on_manifold(result.images)
    assert len(result.history) == 150
    assert {"positive_alignment_loss", "norm_loss"} <= set(result.history[0])


@pytest.mark.parametrize(
    "manifold",
    [
        geoopt.Sphere(),
        geoopt.Scaled(geoopt.PoincareBall(), 2.0),
        geoopt.Euclidean(),
        geoopt.Stereographic(-1.0),
    ],
    ids=lambda manifold: type(manifold).__name__,
)
def test_points_of_other_manifolds_part_too(manifold: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(96, 6, generator=generator) / 3
    images = texts + 0.02 * torch.randn(96, 6, generator=generator)
    result = unlearn_index(
        manifold.projx(images),
        manifold.projx(texts),
        FORGET,
        manifold=manifold,
        steps=150,
        learning_rate=0.1,
        progress=False,
    )
    before, after = result.metrics["before"], result.metrics["after"]
    assert before["forget"]["image_to_text_recall_at_1"] > 0.9
    assert after["forget"]["image_to_text_recall_at_1"] < 0.1
    assert manifold.check_point_on_manifold(result.images)


def test_texts_stay_where_they_are_when_asked_to() -> None:
    manifold = ru.Lorentz(k=2.0)
    images, texts = pairs(manifold)
    result = unlearn_index(
        images,
        texts,
        FORGET,
        manifold=manifold,
        loss=AlignmentCalibration(manifold=manifold),
        move_texts=False,
        steps=150,
        learning_rate=0.1,
        progress=False,
    )
    assert torch.equal(result.texts, texts)
    assert result.metrics["after"]["forget"]["image_to_text_recall_at_1"] == 0.0
    assert set(result.history[0]) == {
        "contrastive_loss",
        "negative_alignment_loss",
        "positive_alignment_loss",
        "performance_loss",
    }


def test_the_seed_decides() -> None:
    manifold = ru.Lorentz(k=2.0)
    runs = [
        unlearn_index(
            *pairs(manifold), FORGET, manifold=manifold, steps=3, retain_batch=8, seed=seed, progress=False
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0].images, runs[1].images)
    assert not torch.equal(runs[0].images, runs[2].images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forget": FORGET[:5]}, r"expected images and texts of shape \(N, d\)"),
        ({"forget": FORGET.long()}, "must be a boolean mask"),
        ({"forget": torch.zeros(96, dtype=torch.bool)}, "chooses 0 of 96"),
        ({"forget": torch.ones(96, dtype=torch.bool)}, "chooses 96 of 96"),
        ({"images": torch.zeros(96, 7)}, "images are not points on"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"retain_batch": 2.5}, "retain_batch must be a whole number"),
        ({"forget_batch": True}, "forget_batch must be a whole number"),
        ({"forget": FORGET.to("meta")}, "must be on one device, got cpu, cpu and meta; move them"),
    ],
)
def test_a_bad_request_is_refused(change: dict[str, Any], message: str) -> None:
    manifold = ru.Lorentz(k=2.0)
    images, texts = pairs(manifold)
    arguments: dict[str, Any] = {"images": images, "texts": texts, "forget": FORGET} | change
    with pytest.raises(ValueError, match=message):
        unlearn_index(**arguments, manifold=manifold, progress=False)


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    manifold = ru.Lorentz(k=2.0)

    def broken(images: Tensor, *_: Any, **__: Any) -> dict[str, Tensor]:
        return {"broken_loss": images.sum() * float("nan")}

    with pytest.raises(
        RuntimeError, match=r"the loss became nan at step 1 \(broken_loss\); a smaller learning_rate"
    ):
        unlearn_index(*pairs(manifold), FORGET, manifold=manifold, loss=broken, progress=False)  # type: ignore[arg-type]
