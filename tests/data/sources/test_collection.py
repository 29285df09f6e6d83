"""Samples one by one: unreadable ones, sizes, and text in two compositions."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image

from riemann_unlearn.data import Concept, EncodedImages
from riemann_unlearn.data.images import thumbnails
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
        UserWarning, match=r"2 of 40 images cannot be used: bad 0 \(it is none of .*; bad 1 .* left out"
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
    with pytest.raises(ValueError, match="1 of 1 images cannot be used"):
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


def test_a_free_caption_goes_with_its_last_image() -> None:
    collected = Collection(["caption"])
    for i in range(60):
        collected.add(f"good {i}", png(), Concept(str(i), f"caption {i}"), "s")
    collected.add("bad", broken(), Concept("x", "a broken one"), "s")
    # One that is held out as well stays, for its image does.
    collected.add("bad", broken(), Concept("y", "held out"), "s")
    collected.add("other", png(), Concept("y", "held out"), "s", heldout=True)
    with pytest.warns(UserWarning, match="2 of 63 images"):
        dataset = collected.dataset("d")
    assert len(dataset.seen) == 60
    assert len(dataset.taxonomy.concepts) == 61


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="d holds no image with a label or a caption"):
        Collection(["name"]).dataset("d")


def test_images_are_numbered_and_named_through_both_parts() -> None:
    collected = Collection(["name"])
    for i in range(4):
        collected.add(f"at {i}", png(), Concept("1", "owl"), "s", heldout=i % 2 == 1, id=f"{i}.png")
    dataset = collected.dataset("d")
    assert dataset.ids == ("0.png", "2.png", "1.png", "3.png")
    assert dataset.heldout is not None
    assert dataset.seen.number is not None
    assert dataset.heldout.number is not None
    assert dataset.seen.number.tolist() == [0, 1]
    assert dataset.heldout.number.tolist() == [2, 3]
    assert dataset.heldout.subset(torch.tensor([1])).number.tolist() == [3]  # type: ignore[union-attr]


def test_files_are_read_when_asked_for_and_looked_at_before(tmp_path: Path) -> None:
    collected = Collection(["name"])
    images = []
    for i, size in enumerate([(64, 48), (40, 40), (64, 48)]):
        image = Image.effect_noise(size, 60).convert("RGB")
        image.save(tmp_path / f"{i}.jpg")
        images.append(image)
        collected.add(str(i), str(tmp_path / f"{i}.jpg"), Concept("1", "owl"), "s")
    stored = collected.dataset("d").seen.images
    assert isinstance(stored, EncodedImages)
    assert [tuple(image.shape) for image in stored[torch.arange(3)]] == [
        (3, 48, 64),
        (3, 40, 40),
        (3, 48, 64),
    ]
    # However an image came to its thumbnail, it is the mean colours on a grid.
    assert stored.thumbnails is not None
    for row, image in enumerate(stored[torch.arange(3)]):
        mean = thumbnails(image[None])[0].int()
        assert (stored.thumbnails[row].int() - mean).abs().max() <= 12
    (tmp_path / "1.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1\.jpg cannot be decoded any more: it is none of"):
        stored[torch.tensor([1])]
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*1\.jpg: No such file"):
        stored[torch.tensor([1])]


def test_a_file_cut_short_is_found_by_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "MAX_DECODED", 0)
    collected = collect(40)
    Image.effect_noise((200, 200), 60).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
    collected.add("cut", str(tmp_path / "x.jpg"), Concept("1", "owl"), "s")
    with pytest.warns(UserWarning, match=r"1 of 41 images .*truncated"):
        assert len(collected.dataset("d").seen) == 40


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
