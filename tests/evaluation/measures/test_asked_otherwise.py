"""Keywords and prototypes: the measures of the quick audit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from riemann_unlearn.data import Concept, Dataset
from riemann_unlearn.evaluation import evaluate
from riemann_unlearn.evaluation.features import encode_texts, ranks
from riemann_unlearn.evaluation.measures.paraphrase import Paraphrase
from riemann_unlearn.evaluation.measures.prototypes import Prototypes
from riemann_unlearn.evaluation.subject import encode
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.spaces import Cosine, Space
from tests.conftest import make_model
from tests.evaluation.worlds import dataset


class Colours(DualEncoder):
    """Sees an image as its mean colour and reads nothing."""

    name = "Colours"

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(1))

    @property
    def space(self) -> Space:
        return Cosine()

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return images.float() / 255

    def tokenize(self, texts: list[str]) -> torch.Tensor:  # type: ignore[override]
        return torch.arange(len(texts))[:, None]

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(tokens), 3) / 3**0.5

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images[:, :, 8:].mean((2, 3)) - 0.5, dim=-1)


def test_prototypes_find_what_no_caption_finds(world: Dataset) -> None:
    report = evaluate(Colours(), world, forget="drink")
    # Every caption is the same to it, so everything asked in words fails.
    assert report["heldout"]["forget"]["accuracy"] == 0.0
    # The colours of the held-out renderings are those of the seen ones.
    assert report["audit"]["prototype"]["forget"] == 1.0
    assert report["on"]["prototype"] == "held-out images"


def test_prototypes_are_the_means_of_the_seen_images(world: Dataset, model: DualEncoder) -> None:
    one = encode(model, world, world.taxonomy.select(["food-fruit"]))
    got = Prototypes().compute(one, {})
    labels, hits = one.seen.labels(1), []
    for feature, label in zip(one.test.features, one.test.labels(1).tolist(), strict=True):
        means = torch.stack([one.seen.features[labels == i].mean(0) for i in range(4)])
        hits.append(int(one.space.pairwise(feature[None], means).argmax()) == label)
    expected = [hit for hit, chosen in zip(hits, one.test.forgotten.tolist(), strict=True) if chosen]
    assert got["forget"] == pytest.approx(sum(expected) / len(expected))
    assert got["images"] == {"forget": 3, "retain": 5}


CONCEPTS = [
    Concept("1", "owl", ("bird", "night")),
    Concept("2", "duck", ("bird", "water")),
    Concept("3", "rose", ("plant",)),
    Concept("4", "tulip", ("plant",)),
    Concept("5", "stone"),
]


def test_keywords_are_asked_for_whole_and_a_tie_is_told() -> None:
    model, data = make_model("MERU"), dataset(CONCEPTS)
    one = encode(model, data, data.taxonomy.select(["owl", "rose"]))
    got = Paraphrase().compute(one, {})
    texts = ["bird, night", "bird, water", "plant", "plant", "stone"]
    hits = ranks(one.space, one.seen.features, encode_texts(model, texts), one.seen.concept) < 1
    assert got["forget"] == hits[one.seen.forgotten].double().mean()
    # Two of four retained and forgotten images are called as another is; none can be found by it.
    assert got["ties"] == {"forget": 0.5, "retain": pytest.approx(1 / 3)}
    assert not hits[one.seen.concept == 2].any()
    assert Paraphrase().rows(got)["forget: described as another is"] == "50.0 [15.0, 85.0] of 4"
    assert got["images"] == {"forget": 4, "retain": 6}
    # No model could find any rose or tulip so.
    plants = Paraphrase().compute(encode(model, data, data.taxonomy.select(["rose", "tulip"])), {})
    assert (plants["forget"], plants["ties"]["forget"]) == (None, 1.0)


def test_without_keywords_recall_is_not_repeated_under_another_name() -> None:
    model = make_model("CLIP")
    for concepts, reason in (
        ([replace(concept, keywords=()) for concept in CONCEPTS], "the concepts have no keywords"),
        ([replace(concept, keywords=("thing",)) for concept in CONCEPTS], "have the same keywords"),
    ):
        got = evaluate(model, dataset(concepts), forget="owl")
        assert "paraphrase" not in got["audit"]
        assert "paraphrase" not in got["on"]
        assert reason in got["unmet"]["paraphrase"]


def test_a_name_for_a_keyword_is_no_other_way_to_ask(meru: DualEncoder) -> None:
    def asked(*keywords: tuple[str, ...]) -> tuple[dict[str, float | None], str | None]:
        names = ("owl", "duck", "rose")
        concepts = [
            Concept(name, name, words) for name, words in zip(names, (*keywords, (), ()), strict=False)
        ]
        report = evaluate(meru, dataset(concepts), forget="owl")
        return report["audit"].get("paraphrase", {}), report["unmet"].get("paraphrase")

    assert asked(("owl",), ("duck",), ("rose",)) == ({}, "the concepts have no keywords but their names")
    # Of the forgotten nothing else is known than its name: recall@1 by names says all there is to say.
    value, reason = asked((), ("bird",), ("flower",))
    assert reason is None
    assert value["forget"] is None
    assert value["retain"] is not None
