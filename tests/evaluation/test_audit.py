from __future__ import annotations

import pytest
import torch

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import audit, evaluate
from riemann_unlearn.evaluation.encoding import encode_images
from riemann_unlearn.models import DualEncoder
from tests.conftest import make_model


class Colours(DualEncoder):
    """Sees an image as its mean colour and reads nothing."""

    geometry = "euclidean"

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(1))

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255

    def tokenize(self, texts: list[str]) -> torch.Tensor:  # type: ignore[override]
        return torch.zeros(len(texts), 1)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(tokens), 3) / 3**0.5

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images[:, :, 8:].mean((2, 3)) - 0.5, dim=-1)

    def similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b.mT


def test_prototypes_find_what_no_caption_finds(world: Dataset) -> None:
    report = evaluate(Colours(), world, forget="drink")
    # Every caption is the same to it, so everything asked in words fails.
    assert report["heldout"]["forget"]["accuracy"] == 0.0
    assert report["audit"]["paraphrase"] == {"forget": 0.0, "retain": 0.0}
    # The colours of the held-out renderings are those of the seen ones.
    assert report["audit"]["prototype"]["forget"] == 1.0


def test_prototypes_are_the_means_of_the_seen_images(world: Dataset, model: DualEncoder) -> None:
    selection = world.taxonomy.select(["food-fruit"])
    assert world.heldout is not None
    seen, heldout = (encode_images(model, part.images) for part in (world.seen, world.heldout))
    report = audit(model, world, selection, seen, heldout)
    hits = []
    labels = world.taxonomy.subcategory_of
    for feature, concept in zip(heldout, world.heldout.concept.tolist(), strict=True):
        means = torch.stack([seen[labels[world.seen.concept] == i].mean(0) for i in range(4)])
        if model.geometry == "euclidean":
            means = means / means.norm(dim=-1, keepdim=True)
        hits.append(int(model.similarity(feature[None], means).argmax()) == int(labels[concept]))
    forget = selection.concepts[world.heldout.concept].tolist()
    expected = [hit for hit, chosen in zip(hits, forget, strict=True) if chosen]
    assert report["prototype"]["forget"] == pytest.approx(sum(expected) / len(expected))


def test_keywords_are_asked_for_whole(world: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The world's concepts share their only keyword: nothing can tell them apart by it."""
    model = make_model("MERU")
    asked: list[list[str]] = []
    real = model.tokenize
    monkeypatch.setattr(model, "tokenize", lambda texts: asked.append(list(texts)) or real(texts))
    seen = encode_images(model, world.seen.images)
    report = audit(model, world, world.taxonomy.select(["owl"]), seen, None)
    assert asked == [["thing"] * 8]
    assert report == {"paraphrase": {"forget": 0.0, "retain": 0.0}}
