"""What to forget, by captions and by single images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riemann_unlearn.data import Concept, Dataset, Samples, Selection, Taxonomy, UnknownConceptError
from riemann_unlearn.data.queries import lasting_query

CAPTIONS = ["a red sofa", "the sofa is Red", "a redhead on a sofa", "two boats in the fog"]


def made(concepts: list[Concept], seen: list[int], heldout: list[int], ids: tuple[str, ...]) -> Dataset:
    taxonomy = Taxonomy(concepts)

    def samples(shown: list[int]) -> Samples:
        images = torch.zeros(len(shown), 3, 4, 4, dtype=torch.uint8)
        return Samples(
            images, torch.tensor(shown), torch.zeros(len(shown), dtype=torch.long), ("m",), taxonomy
        )

    return Dataset("made", samples(seen), samples(heldout) if heldout else None, ids)


def animals() -> Dataset:
    """Two owls, three ducks and a cat to learn from; an owl and a duck held out."""
    concepts = [Concept(n, n, path=(k,)) for n, k in (("owl", "bird"), ("duck", "bird"), ("cat", "mammal"))]
    ids = ("o/1.png", "o/2.png", "d/1.png", "d/2.png", "d/3.png", "c/7.png", "test/o/9.png", "test/d/8.png")
    return made(concepts, [0, 0, 1, 1, 1, 2], [0, 1], ids)


def rows(selection: Selection, data: Dataset) -> tuple[list[int], list[int]]:
    assert data.heldout is not None
    seen, heldout = (part.chosen(selection).nonzero()[:, 0].tolist() for part in data.parts)
    return seen, heldout


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("/red.*sofa/", [0, 2]),
        ("/SOFA/", [0, 1, 2]),
        ("/^a red/", [0, 2]),
        ("/(?-i:Red)/", [1]),
        ("words:sofa red", [0, 1]),
        ("words: Boats fog", [3]),
        ("a red sofa", [0]),
    ],
)
def test_captions_are_searched_by_words_and_by_expressions(query: str, expected: list[int]) -> None:
    taxonomy = Taxonomy([Concept(str(i), text) for i, text in enumerate(CAPTIONS)])
    selection = taxonomy.select([query])
    assert selection.concepts.nonzero()[:, 0].tolist() == expected
    assert selection.level == 0
    assert selection.images is None


def test_what_is_searched_is_the_name_and_the_caption() -> None:
    taxonomy = Taxonomy([Concept("1", "n031", ("hat",), caption="a cowboy hat"), Concept("2", "n032")])
    assert taxonomy.select(["/cowboy/"]).concepts.tolist() == [True, False]
    assert taxonomy.select(["words:n032"]).concepts.tolist() == [False, True]
    assert taxonomy.levels[0].captions == ("a cowboy hat", "n032")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("/train/", "no caption matches '/train/'; try fewer words"),
        ("words:sofa train", "no caption matches"),
        ("/(/", r"/\(/ is no regular expression: "),
        ("//", "no concept '//'"),
        ("words: ", "no concept 'words: '"),
    ],
)
def test_a_query_that_finds_nothing_is_named(query: str, message: str) -> None:
    taxonomy = Taxonomy([Concept(str(i), text) for i, text in enumerate(CAPTIONS)])
    with pytest.raises(ValueError, match=message):
        taxonomy.select([query])


def test_an_image_is_asked_for_by_its_path_or_the_name_of_its_file() -> None:
    data = animals()
    for query in ("d/2.png", "test/d/8.png", "8.png"):
        selection = data.select([query])
        assert not selection.concepts.any()
        assert selection.images is not None
        assert selection.images.nonzero()[:, 0].tolist() == [data.ids.index(query) if "/" in query else 7]
        assert selection.asked == (0,)
    # 1.png is the name of two files.
    with pytest.raises(UnknownConceptError, match=r"no concept '1\.png'"):
        data.select(["1.png"])
    # What is a concept is one, and no image.
    assert data.select(["cat"]).images is None


def test_a_list_names_images(tmp_path: Path) -> None:
    data = animals()
    (tmp_path / "list.txt").write_text("\ufeffd/1.png\n\n 9.png \nd/3.png\n", encoding="utf-8")
    selection = data.select([f"@{tmp_path}/list.txt"])
    assert rows(selection, data) == ([2, 4], [0])
    assert [mask.any().item() for mask in selection.forgotten] == [False, False]
    # Beside a concept, what this says already need not be said of images.
    both = data.select(["owl", f"@{tmp_path}/list.txt"])
    assert rows(both, data) == ([0, 1, 2, 4], [0])
    assert both.images is not None
    assert both.images.nonzero()[:, 0].tolist() == [2, 4]
    assert both.forgotten[1].tolist() == [False, False]
    moved = both.to("cpu")
    assert moved.images is not None
    assert torch.equal(moved.images, both.images)


def test_a_concept_without_a_seen_image_left_is_forgotten_itself(tmp_path: Path) -> None:
    data = animals()
    (tmp_path / "owls").write_text("o/1.png\no/2.png\n")
    selection = data.select([f"@{tmp_path}/owls"])
    assert selection.concepts.tolist() == [True, False, False]
    assert selection.images is None
    assert rows(selection, data) == ([0, 1], [0])
    # And with it the label above, where nothing else is below.
    assert data.select(["7.png"]).forgotten[1].tolist() == [False, True]


def test_all_rows_of_an_image_are_selected() -> None:
    data = made(
        [Concept(str(i), text) for i, text in enumerate(CAPTIONS)], [0, 1, 2, 3], [], ("x", "x", "y", "z")
    )
    assert data.select(["x"]).concepts.tolist() == [True, True, False, False]


def test_subsets_keep_their_numbers(tmp_path: Path) -> None:
    data = animals()
    selection = data.select(["d/2.png"])
    part = data.seen.subset(torch.tensor([3, 0]))
    assert part.chosen(selection).tolist() == [True, False]
    less = Dataset("less", part, data.heldout, data.ids)
    assert less.seen.chosen(less.select(["d/2.png"])).tolist() == [True, False]
    # The image is the only duck that is left.
    assert less.select(["d/2.png"]).concepts.tolist() == [False, True, False]
    raw = Samples(part.images, part.concept, part.source, part.sources, part.taxonomy)
    with pytest.raises(ValueError, match="these have no numbers"):
        raw.chosen(selection)
    assert raw.chosen(data.select(["owl"])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n", "list names no image; write one a line"),
        (
            "d/1.png\nd/9.png\n1.png\n",
            r"2 of 3 lines of .*list name no image of made, or several: 'd/9.png', '1",
        ),
        (None, "cannot read .*list: No such file"),
    ],
)
def test_an_unusable_list_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "list").write_text(text)
    with pytest.raises(ValueError, match=message):
        animals().select([f"@{tmp_path}/list"])


def test_images_without_names_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("x\n")
    data = made([Concept("1", "owl"), Concept("2", "cat")], [0, 1], [], ())
    with pytest.raises(ValueError, match="there images have no names"):
        data.select([f"@{tmp_path}/list"])


def test_everything_or_nothing_is_refused(tmp_path: Path) -> None:
    data = animals()
    (tmp_path / "list").write_text("\n".join(data.ids))
    with pytest.raises(ValueError, match="would forget every concept"):
        data.select([f"@{tmp_path}/list"])
    with pytest.raises(ValueError, match="nothing to forget"):
        data.select([])
    with pytest.raises(TypeError, match="queries must be a sequence"):
        data.select("owl")


def test_a_list_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lasting_query("@a.txt") == f"@{tmp_path}/a.txt"
    assert lasting_query("owl") == "owl"
