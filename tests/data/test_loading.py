from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from riemann_unlearn import data
from riemann_unlearn.data import SOURCES, Concept, Dataset, Samples, Source, Taxonomy
from riemann_unlearn.registry import register


class Flags(Source):
    """A third party's source, whole."""

    name = "flags"
    description = "a file of the names of flags"

    def opens(self, path: Path) -> bool:
        return path.suffix == ".flags" or (path / "x.flags").exists()

    def load(self, path: Path | None) -> Dataset:
        names = path.read_text().split() if path and path.is_file() else ["blue", "red"]
        taxonomy = Taxonomy([Concept(name, name) for name in names])
        n = len(names)
        images = torch.zeros(n, 3, 4, 4, dtype=torch.uint8)
        samples = Samples(images, torch.arange(n), torch.zeros(n, dtype=torch.long), ("me",), taxonomy)
        return Dataset("whatever", samples, None)


@pytest.fixture
def flags() -> Iterator[type[Flags]]:
    register(Flags)
    yield Flags
    del SOURCES._entries["flags"]


def test_a_dataset_is_itself(world: Dataset) -> None:
    assert data.load(world) is world


def test_a_path_is_made_absolute(world_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(world_path.parent)
    for given in (world_path.name, Path(world_path.name), f"./{world_path.name}/", world_path):
        assert data.load(given).name == str(world_path.resolve())
    name = data.load(world_path.name).name
    monkeypatch.chdir(tmp_path)
    assert len(data.load(name).seen) == 16
    monkeypatch.setenv("HOME", str(world_path.parent))
    assert data.load(f"~{os.sep}{world_path.name}").name == name


def test_a_third_partys_source_is_taken_by_name_by_path_and_by_itself(
    flags: type[Flags], tmp_path: Path, world_path: Path
) -> None:
    assert data.list_datasets() == ["emoji", "fashion-mnist", "flags"]
    named = data.load("flags")
    assert named.name == "flags"
    assert [c.name for c in named.taxonomy.concepts] == ["blue", "red"]
    file = tmp_path / "my.flags"
    file.write_text("green")
    assert data.load(file).taxonomy.concepts[0].name == "green"
    assert data.load(file).name == str(file)
    assert data.load(flags()).name == "whatever"
    # The last registered is asked first, so a form of its own may look like one of ours.
    (tmp_path / "x.flags").touch()
    (tmp_path / "x.tar").write_bytes((world_path / "plain-seen.tar.gz").read_bytes())
    assert [c.name for c in data.load(tmp_path).taxonomy.concepts] == ["blue", "red"]
    assert len(data.load(world_path).seen) == 16


def test_an_instance_may_be_registered() -> None:
    source = Flags()
    source.name = "made"
    register(source)
    try:
        assert data.load("made").name == "made"
    finally:
        del SOURCES._entries["made"]


def test_a_source_that_opens_nothing_is_had_by_its_name(flags: type[Flags], tmp_path: Path) -> None:
    class Named(Flags):
        opens = Source.opens

    assert not Named().opens(tmp_path)
    assert data.load(Named()).name == "whatever"


def test_what_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no dataset 'emojis'; did you mean 'emoji'\\? Expected one of emoji,"
    ):
        data.load("emojis")
    with pytest.raises(ValueError, match=r"no dataset 'shards'; Expected"):
        data.load("shards")  # needs a path
    with pytest.raises(
        ValueError, match=r"is nothing that a data source opens. There are image-folder: a folder"
    ):
        data.load(tmp_path)


def test_the_documented_source_works() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    variables: dict[str, Any] = {"__name__": "example"}
    try:
        exec(example, variables)
    finally:
        SOURCES._entries.pop("squares", None)
    dataset = variables["dataset"]
    assert dataset.name == "squares"
    assert dataset.taxonomy.select(["temperature:warm"]).concepts.tolist() == [True, True, False, False]
