from __future__ import annotations

import pytest
import torch

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import evaluate, zero_shot
from riemann_unlearn.evaluation.zero_shot import ranks
from riemann_unlearn.models import DualEncoder
from tests.conftest import make_model


class Table(DualEncoder):
    """A "model" whose similarities are given."""

    def __init__(self, similarity: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.table = similarity

    def similarity(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return self.table


def test_ranks_count_the_better_and_the_equal() -> None:
    table = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    own = torch.tensor([0, 2, 1])
    got = ranks(Table(table), torch.zeros(3, 1), torch.zeros(3, 1), own)
    assert got.tolist() == [0, 2, 2]  # a tie counts against the model


@pytest.mark.parametrize("architecture", ["CLIP", "MERU"])
def test_both_models_rank_as_their_similarities_do_and_ties_are_exact(architecture: str) -> None:
    model = make_model(architecture)
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (30, 20)
    )
    texts[10:15] = texts[:5]
    images[25:] = texts[:5]  # at their own texts, which have doubles
    own = torch.arange(30) % 5
    similarity = model.similarity(images.double(), texts.double())
    want = (similarity >= similarity.gather(1, own[:, None]) - 1e-12).sum(1) - 1
    assert torch.equal(ranks(model, images, texts, own), want)
    assert want.min() == 1
    best = model.nearest(images[:25], texts[5:], 2)
    assert torch.equal(best, similarity[:25, 5:].topk(2, dim=1).indices)


def test_nan_does_not_pass_for_forgetting() -> None:
    missing, zeros, own = torch.full((1, 2), torch.nan), torch.zeros(2, 2), torch.zeros(1).long()
    for images, texts in ((missing, zeros), (zeros[:1], missing.expand(2, 2))):
        with pytest.raises(ValueError, match="features are not finite"):
            ranks(make_model("MERU"), images, texts, own)
    with pytest.raises(ValueError, match="contain NaN"):
        ranks(Table(missing), zeros[:1], zeros, own)


class Oracle(DualEncoder):
    """Knows the world by heart, except for one concept, which it takes for another."""

    geometry = "euclidean"

    def __init__(self, data: Dataset, wrong: str | None = None, taken_for: str | None = None) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(1))
        self.seen = {
            image.numpy().tobytes(): int(i)
            for image, i in zip(
                torch.cat([data.seen.images, data.heldout.images]),  # type: ignore[union-attr]
                torch.cat([data.seen.concept, data.heldout.concept]),  # type: ignore[union-attr]
                strict=True,
            )
        }
        self.concepts = [(c.name, c.subcategory, c.category) for c in data.taxonomy.concepts]
        self.swap = {wrong: taken_for}
        self.words: list[str] = []

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def tokenize(self, texts: list[str]) -> torch.Tensor:  # type: ignore[override]
        self.words = list(texts)
        return torch.arange(len(texts))[:, None]

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._code([self.words[i] for i in tokens[:, 0]])

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        rows = []
        for image in images:
            name = self.concepts[self.seen[image.numpy().tobytes()]][0]
            name = self.swap.get(name, name)
            rows.append(next(c for c in self.concepts if c[0] == name))
        levels = [[r[0] for r in rows], [r[1].replace("-", " ") for r in rows]]
        levels.append([r[2].replace("&", "and").lower() for r in rows])
        return sum(self._code(level) for level in levels)  # type: ignore[return-value]

    def _code(self, words: list[str]) -> torch.Tensor:
        known = sorted(
            {
                w
                for c in self.concepts
                for w in (c[0], c[1].replace("-", " "), c[2].replace("&", "and").lower(), "thing")
            }
        )
        return torch.nn.functional.one_hot(torch.tensor([known.index(w) for w in words]), len(known)).float()

    def similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b.mT


def test_a_model_that_knows_everything_scores_one(world: Dataset) -> None:
    assert zero_shot(Oracle(world), world.seen) == {
        "accuracy": 1.0,
        "recall_at_1": 1.0,
        "recall_at_5": 1.0,
        "parent_accuracy": 1.0,
    }


def test_each_measure_sees_its_own_level(world: Dataset) -> None:
    """An apple taken for a banana is the right subcategory; for an owl, nothing is right."""
    fruit = evaluate(Oracle(world, "red apple", "banana"), world, forget="red apple")
    assert fruit["forget"]["recall_at_1"] == 0.0
    assert fruit["forget"]["accuracy"] == fruit["forget"]["parent_accuracy"] == 1.0
    bird = evaluate(Oracle(world, "red apple", "owl"), world, forget=["red apple"])
    assert bird["forget"]["accuracy"] == bird["forget"]["parent_accuracy"] == 0.0
    sibling = evaluate(Oracle(world, "red apple", "hot beverage"), world, forget=["red apple"])
    assert (sibling["forget"]["accuracy"], sibling["forget"]["parent_accuracy"]) == (0.0, 1.0)
    for report in (fruit, bird, sibling):
        assert set(report["retain"].values()) == set(report["heldout"]["retain"].values()) == {1.0}
        assert report["heldout"]["forget"]["recall_at_1"] == 0.0


def test_a_collapsed_model_scores_zero_not_chance(world: Dataset, model: DualEncoder) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 0:
                parameter.zero_()
    assert set(zero_shot(model, world.seen).values()) == {0.0}


def test_a_group_without_images_has_no_measure(world: Dataset, model: DualEncoder) -> None:
    none = torch.zeros(len(world.seen), dtype=torch.bool)
    report = zero_shot(model, world.seen, {"none": none, "all": ~none})
    assert set(report["none"].values()) == {None}
    assert report["all"] == zero_shot(model, world.seen)


def test_evaluation_leaves_the_model_as_it_was(world: Dataset) -> None:
    model = make_model("MERU").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    zero_shot(model, world.seen)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
