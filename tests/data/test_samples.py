from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from riemann_unlearn.data import Concept, Dataset, EncodedImages, Samples, Taxonomy

TAXONOMY = Taxonomy(
    [
        Concept(str(i), name, path=(kind,))
        for i, (name, kind) in enumerate([("a", "x"), ("b", "x"), ("c", "y")])
    ]
)


def png(value: int, width: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


def encoded_samples() -> Samples:
    images = EncodedImages([png(10 * i, width=4 + i) for i in range(5)])
    return Samples(images, torch.tensor([0, 2, 0, 2, 2]), torch.tensor([0, 0, 1, 1, 1]), ("m", "n"), TAXONOMY)


def test_labels_are_by_level() -> None:
    samples = encoded_samples()
    assert len(samples) == 5
    assert samples.labels(0).tolist() == [0, 2, 0, 2, 2]
    assert samples.labels(1).tolist() == [0, 1, 0, 1, 1]
    assert Dataset("d", samples, None).taxonomy is TAXONOMY


def test_a_subset_is_not_decoded_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = EncodedImages.__getitem__

    def spy(self: EncodedImages, rows: torch.Tensor) -> list[torch.Tensor]:
        asked.extend(rows.tolist())
        return plain(self, rows)

    monkeypatch.setattr(EncodedImages, "__getitem__", spy)
    samples = encoded_samples()
    second = samples.subset(samples.source == 1)
    last = second.subset(torch.tensor([2, 0]))
    assert (len(second), len(last)) == (3, 2)
    assert last.concept.tolist() == [2, 0]
    assert last.source.tolist() == [1, 1]
    assert asked == []
    images = last.images[torch.tensor([0, 1])]
    assert asked == [4, 2]
    assert [int(image.unique()) for image in images] == [40, 20]


def test_a_subset_of_a_tensor_is_a_tensor(world: Dataset) -> None:
    subset = world.seen.subset(torch.tensor([3, 0]))
    assert isinstance(subset.images, torch.Tensor)
    assert isinstance(world.seen.images, torch.Tensor)
    assert torch.equal(subset.images, world.seen.images[[3, 0]])
    assert subset.taxonomy is world.taxonomy


def test_both_parts_of_a_dataset_have_one_taxonomy() -> None:
    samples = encoded_samples()
    other = Taxonomy(TAXONOMY.concepts[:1])
    heldout = Samples(EncodedImages([png(0)]), torch.tensor([0]), torch.tensor([0]), ("m",), other)
    with pytest.raises(ValueError, match="seen and the held-out part of d have different concepts"):
        Dataset("d", samples, heldout)
    assert Dataset("d", samples, samples.subset(torch.tensor([0]))).heldout is not None


@pytest.mark.parametrize(
    ("concept", "source", "message"),
    [
        ([0, 1], [0, 0, 0], r"expected the concept of each of 3 images, got shape \(2,\)"),
        ([0, 1, 2], [[0, 0, 0]], r"expected the source of each of 3 images"),
        ([0, 1, 3], [0, 0, 0], "concept must be between 0 and 2, got 0 to 3"),
        ([0, 1, 2], [0, -1, 0], "source must be between 0 and 0, got -1 to 0"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    concept: list[int], source: list[int], message: str
) -> None:
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        Samples(images, torch.tensor(concept), torch.tensor(source), ("m",), TAXONOMY)
