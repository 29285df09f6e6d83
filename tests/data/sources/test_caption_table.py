"""Tables of captions and labels: their endings, their columns, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from riemann_unlearn import data
from riemann_unlearn.data.sources.caption_table import CaptionTable
from tests.data.sources.images import write_image

ROWS: list[dict[str, Any]] = [
    {"path": "a/1.png", "caption": "a dog, asleep", "label": "dog"},
    {"path": "2.jpg", "caption": "an owl", "label": "owl"},
    {"path": "3.png", "caption": "a dog, asleep", "label": "dog"},
]


def write_table(folder: Path, name: str, rows: list[dict[str, Any]], image: str = "path") -> Path:
    for number, row in enumerate(rows):
        if isinstance(row.get(image), str) and not (folder / row[image]).exists():
            write_image(folder / row[image], number)
    table = folder / name
    if table.suffix == ".jsonl":
        table.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif table.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), table)
    else:
        comma = "\t" if table.suffix == ".tsv" else ","
        lines = [comma.join(f'"{value}"' for value in row.values()) for row in rows]
        table.write_text("\n".join([comma.join(rows[0]), *lines]), encoding="utf-8-sig")
    return folder


def captions(dataset: data.Dataset) -> list[str]:
    return [dataset.taxonomy.levels[0].captions[i] for i in dataset.seen.concept]


@pytest.mark.parametrize("name", ["captions.csv", "captions.tsv", "metadata.jsonl", "captions.parquet"])
def test_a_table_names_images_captions_and_labels(tmp_path: Path, name: str) -> None:
    write_table(tmp_path, name, ROWS)
    for path in (tmp_path, tmp_path / name):
        dataset = data.load(path)
        assert dataset.name == str(path)
        assert captions(dataset) == ["a dog, asleep", "an owl", "a dog, asleep"]
        assert [level.name for level in dataset.taxonomy.levels] == ["caption", "label"]
        assert dataset.taxonomy.select(["label:dog"]).concepts.tolist() == [True, False]
        assert dataset.ids == ("a/1.png", "2.jpg", "3.png")


def test_columns_go_by_several_names_and_others_are_passed_over(tmp_path: Path) -> None:
    # As open_clip writes them: tabs, whatever the file is called.
    write_image(tmp_path / "x.png")
    (tmp_path / "captions.csv").write_text("filepath\ttitle\turl\nx.png\tan owl\thttp://x\n")
    dataset = data.load(tmp_path)
    assert captions(dataset) == ["an owl"]
    assert [level.name for level in dataset.taxonomy.levels] == ["caption"]


def test_labels_alone_are_classes_with_a_taxonomy_or_without(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "class": label} for i, label in enumerate([7, 9, 7])]
    write_table(tmp_path, "labels.jsonl", rows, "image")
    dataset = data.load(tmp_path / "labels.jsonl")
    assert [level.labels for level in dataset.taxonomy.levels] == [("7", "9")]
    (tmp_path / "taxonomy.csv").write_text("digit,parity,caption\n7,odd,a seven\n9,odd,a nine\n")
    dataset = data.load(tmp_path / "labels.jsonl")
    assert [level.name for level in dataset.taxonomy.levels] == ["digit", "parity"]
    assert captions(dataset) == ["a seven", "a nine", "a seven"]


def test_captions_labels_and_parents_are_levels_one_above_the_other(tmp_path: Path) -> None:
    write_table(tmp_path, "captions.csv", ROWS)
    (tmp_path / "taxonomy.csv").write_text("label,kind,caption\ndog,mammal,a big dog\nowl,bird,\n")
    levels = data.load(tmp_path).taxonomy.levels
    assert [(level.name, level.captions) for level in levels] == [
        ("caption", ("an owl", "a dog, asleep")),
        ("label", ("owl", "a big dog")),
        ("kind", ("bird", "mammal")),
    ]


def test_a_caption_under_two_labels_is_two_concepts(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.png", "caption": "a photo", "label": label} for i, label in enumerate("ab")]
    write_table(tmp_path, "captions.csv", [*rows, {"path": "2.png", "caption": "an owl", "label": "a"}])
    level = data.load(tmp_path).taxonomy.levels[0]
    assert level.labels == ("a photo (a)", "an owl", "a photo (b)")
    assert level.captions == ("a photo", "an owl", "a photo")


def test_rows_of_val_and_test_are_held_out(tmp_path: Path) -> None:
    rows = [
        {"path": f"{i}.png", "caption": f"{i}", "split": split}
        for i, split in enumerate(["train", "", "val", "test"])
    ]
    dataset = data.load(write_table(tmp_path, "captions.csv", rows))
    assert dataset.heldout is not None
    assert (len(dataset.seen), len(dataset.heldout)) == (2, 2)


def test_an_image_may_have_several_captions_and_be_anywhere(tmp_path: Path) -> None:
    image = write_image(tmp_path / "elsewhere" / "x.png")
    rows = [{"path": str(image), "caption": f"caption {i}"} for i in range(2)]
    folder = tmp_path / "table"
    folder.mkdir()
    dataset = data.load(write_table(folder, "captions.jsonl", rows))
    assert dataset.ids == (str(image),) * 2
    assert captions(dataset) == ["caption 0", "caption 1"]


def test_rows_that_cannot_be_used_are_left_out_and_named(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"path": f"{i}.png", "caption": f"caption {i}"} for i in range(100)]
    write_table(tmp_path, "captions.jsonl", rows)
    with (tmp_path / "captions.jsonl").open("a") as file:
        file.write('{"path": "gone.png", "caption": "gone"}\n')
        file.write('{"path": "1.png", "caption": null}\n[]\n{\n')
        file.write('{"path": 3, "caption": "x"}\n')
    with pytest.warns(
        UserWarning,
        match=r"5 of 105 .*captions.jsonl:103 \(its caption is None\); .*:104 \(it is no JSON object",
    ):
        assert len(data.load(tmp_path).seen) == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,words\nx.png,owl\n",
            r"has the columns path, words; expected one for the path, and one",
        ),
        ("caption\nowl\n", r"has the columns caption; expected"),
        ("path,caption\nx.png\n", "1 of 1 .*captions.csv:2 .it has not as many fields"),
        ("path,caption,split\nx.png,owl,dev\n", "its split is 'dev'; known are train"),
        ("path,caption\nx.png, \n", "its caption is ' '"),
        ("path,caption\n", "holds no image with a label or a caption"),
        ("", "holds no image with a label or a caption"),
    ],
)
def test_an_unusable_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_image(tmp_path / "x.png")
    (tmp_path / "captions.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path)


def test_what_is_no_table_at_all_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_bytes(b"path,caption\n\xff\xfe,x\n")
    with pytest.raises(ValueError, match="is not a table that can be read"):
        data.load(tmp_path)
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "captions.csv").symlink_to(tmp_path / "gone")
    assert not CaptionTable().opens(tmp_path)
    with pytest.raises(ValueError, match="no default place"):
        CaptionTable().load(None)


def test_parquet_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "captions.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pyarrow, which is not installed; .*riemann-unlearn\[parquet\]"):
        data.load(tmp_path)


def test_numbers_of_hugging_faces_classes_have_names(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"image": str(write_image(tmp_path / f"{i}.png", i)), "label": i} for i in range(3)]
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["owl", "cat"]}}}}
    table = arrow.Table.from_pylist(rows)
    for metadata in ({"huggingface": json.dumps(about)}, {"huggingface": "[]"}):
        parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "captions.parquet")
        expected = ["owl", "cat", "2"] if "info" in metadata["huggingface"] else ["0", "1", "2"]
        assert captions(data.load(tmp_path)) == expected


def test_parquet_may_hold_the_images(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    content = write_image(tmp_path / "x.png", 0, (9, 9)).read_bytes()
    rows = [{"image": {"bytes": content, "path": name}, "caption": "an owl"} for name in ("a.png", None)]
    dataset = data.load(write_table(tmp_path, "captions.parquet", rows))
    assert dataset.ids == ("a.png", "captions.parquet:2")
    assert torch.equal(dataset.seen.images[torch.tensor([0])][0, :, 0, 0], torch.tensor([255, 0, 0]))
    (tmp_path / "captions.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="is no parquet file that can be read"):
        data.load(tmp_path)
