"""Samples one by one: unreadable ones, sizes, and text in two compositions."""

from __future__ import annotations

import io
import unicodedata

import pytest
import torch
from PIL import Image

from riemann_unlearn.data import Concept, EncodedImages
from riemann_unlearn.data.sources import collection
from riemann_unlearn.data.sources.collection import Collection


def png(colour: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def broken() -> bytes:
    return png()[:40]


def collect(good: int, bad: int = 0, **options: bool) -> Collection:
    """Good images of "owl" and unreadable ones of it."""
    collected = Collection(["name"])
    for i in range(good):
        collected.add(f"good {i}", png(), Concept("1", "owl"), "s")
    for i in range(bad):
        collected.add(f"bad {i}", broken(), Concept("1", "owl"), "s", **options)
    return collected


def test_unreadable_images_are_left_out_counted_and_named() -> None:
    with pytest.warns(
        UserWarning, match=r"2 of 40 images cannot be read: bad 0 \(it is none of .*; bad 1 .* left out"
    ):
        dataset = collect(38, 2).dataset("d")
    assert len(dataset.seen) == 38
    with pytest.warns(UserWarning, match=r"4 of 104 .* bad 2 \(.*\); \.\.\.\. They"):
        collect(100, 4).dataset("d")


def test_too_many_unreadable_images_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"3 of 40 images cannot .* more than 5%; mend them or take them out"
    ):
        collect(37, 3).dataset("d")
    with pytest.raises(ValueError, match="1 of 1 images cannot be read"):
        collect(0, 1).dataset("d")


@pytest.mark.parametrize("shown_heldout", [False, True])
def test_a_concept_may_not_lose_its_last_image(shown_heldout: bool) -> None:
    collected = collect(100)
    collected.add("only", broken(), Concept("2", "duck"), "s")
    if shown_heldout:
        collected.add("other", png(), Concept("2", "duck"), "s", heldout=True)
    with pytest.raises(ValueError, match=r"1 of 10. images .*No image to learn 'duck' from is left"):
        collected.dataset("d")


def test_a_concept_may_lose_a_heldout_image() -> None:
    with pytest.warns(UserWarning, match="1 of 41 images"):
        dataset = collect(40, 1, heldout=True).dataset("d")
    assert dataset.heldout is None


def test_small_sets_of_one_size_are_held_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    images = collect(3).dataset("d").seen.images
    assert isinstance(images, torch.Tensor)
    assert images.shape == (3, 3, 8, 8)
    monkeypatch.setattr(collection, "MAX_DECODED", 2 * 3 * 8 * 8)
    assert isinstance(collect(2).dataset("d").seen.images, torch.Tensor)
    assert isinstance(collect(3).dataset("d").seen.images, EncodedImages)


def test_images_keep_their_own_size_whatever_the_first_is() -> None:
    collected = Collection(["name"])
    for i, size in enumerate([(300, 20), (8, 8), (8, 8)]):
        collected.add(str(i), png(size=size), Concept("1", "owl"), "s")
    images = collected.dataset("d").seen.images
    assert [tuple(image.shape) for image in images[torch.arange(3)]] == [(3, 20, 300), (3, 8, 8), (3, 8, 8)]


def test_names_that_differ_only_in_composition_are_one() -> None:
    collected = Collection(["name", "kind"])
    for form in ("NFC", "NFD"):
        cream, cakes = (unicodedata.normalize(form, text) for text in ("crème brûlée", "gâteaux"))
        words = (unicodedata.normalize(form, "brûlé"), form)
        collected.add(form, png(), Concept(form, cream, words, (cakes,)), "s")
    collected.add("other", png(), Concept("2", "tart", (), ("pies",)), "s")
    taxonomy = collected.dataset("d").taxonomy
    assert [c.name for c in taxonomy.concepts] == [unicodedata.normalize("NFC", "crème brûlée"), "tart"]
    assert taxonomy.concepts[0].keywords == (unicodedata.normalize("NFC", "brûlé"), "NFC", "NFD")
    for form in ("NFC", "NFD"):
        assert taxonomy.select([unicodedata.normalize(form, "gâteaux")]).concepts.tolist() == [True, False]


def test_keywords_of_one_concepts_samples_add_up() -> None:
    collected = Collection(["name"])
    for words in ((), ("bird", "night"), ("wise", "bird")):
        collected.add("x", png(), Concept("1", "owl", words), "s")
    assert collected.dataset("d").taxonomy.concepts[0].keywords == ("bird", "night", "wise")


def test_concepts_and_sources_do_not_depend_on_the_order_of_samples() -> None:
    made = [("owl", "bird", "b"), ("cat", "mammal", "a"), ("duck", "bird", "a")]
    for order in (made, made[::-1]):
        collected = Collection(["name", "kind"])
        for name, kind, source in order:
            collected.add(name, png(), Concept(name, name, (), (kind,)), source)
        samples = collected.dataset("d").seen
        assert [c.name for c in samples.taxonomy.concepts] == ["duck", "owl", "cat"]
        assert samples.sources == ("a", "b")
