from __future__ import annotations

from pathlib import Path

import pytest

from riemann_unlearn import data
from riemann_unlearn.data.sources.text_pairs import TextPairs
from tests.data.sources.images import write_image


def write_pairs(folder: Path, captions: list[str], prefix: str = "") -> Path:
    for i, caption in enumerate(captions):
        path = write_image(folder / prefix / f"{i:03}.jpg", i)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


def test_a_text_beside_an_image_is_its_caption(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["two boats\nin the fog ", "\ufeffan owl", "an owl"])
    (tmp_path / "002.txt").rename(tmp_path / "002.caption")
    dataset = data.load(tmp_path)
    (level,) = dataset.taxonomy.levels
    assert (level.name, level.labels) == ("caption", ("an owl", "two boats in the fog"))
    assert dataset.seen.concept.tolist() == [1, 0, 0]
    assert dataset.ids == ("000.jpg", "001.jpg", "002.jpg")


def test_pairs_may_be_in_train_and_test(tmp_path: Path) -> None:
    write_pairs(write_pairs(tmp_path, ["a", "b"], "train"), ["a", "c"], "test")
    dataset = data.load(tmp_path)
    assert dataset.heldout is not None
    assert [dataset.taxonomy.concepts[i].name for i in dataset.heldout.concept] == ["a", "c"]


def test_images_without_a_caption_are_left_out_and_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, [f"caption {i}" for i in range(80)])
    (tmp_path / "003.txt").unlink()
    (tmp_path / "004.txt").write_text(" \n")
    (tmp_path / "005.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.warns(
        UserWarning,
        match=r"3 of 80 .*003.jpg \(it has no caption beside it\); 004.jpg \(its text is empty\); 005.jpg",
    ):
        assert len(data.load(tmp_path).seen) == 77


def test_what_has_no_pairs_is_of_another_form(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("about these")
    assert not TextPairs().opens(tmp_path)
    assert not TextPairs().opens(tmp_path / "a" / "x.png")
    with pytest.raises(ValueError, match="no default place"):
        TextPairs().load(None)
