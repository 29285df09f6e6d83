from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from riemann_unlearn import data
from riemann_unlearn.data.shards import read_shard, write_shard
from tests.conftest import write_world

EMOJI = Path(data.__file__).parent / "emoji"


def png(size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def about(**changes: object) -> bytes:
    return json.dumps({"name": "owl", "subcategory": "bird", "category": "animals", **changes}).encode()


def test_a_folder_of_shards_is_read(world: data.Dataset) -> None:
    assert len(world.seen) == 16
    assert world.heldout is not None
    assert len(world.heldout) == 8
    assert world.seen.images.shape == (16, 3, 16, 16)
    assert world.seen.images.dtype == torch.uint8
    names = [world.taxonomy.concepts[i].name for i in world.seen.concept]
    assert sorted(names) == sorted(2 * [c.name for c in world.taxonomy.concepts])
    red = world.seen.images[[n == "red apple" for n in names]]
    assert (red[:, 0, 12:] > 200).all()
    assert (red[:, 1, 12:] < 60).all()


def test_every_image_says_where_it_comes_from(world: data.Dataset) -> None:
    assert world.seen.sources == ("dark-seen", "plain-seen")
    assert torch.bincount(world.seen.source).tolist() == [8, 8]
    plain = world.seen.subset(world.seen.source == 1)
    assert len(plain) == 8
    assert plain.taxonomy is world.taxonomy
    assert (plain.images[:, :, :3] == world.seen.images[world.seen.source == 1][:, :, :3]).all()
    first = world.seen.subset(torch.tensor([3, 0]))
    assert first.concept.tolist() == world.seen.concept[[3, 0]].tolist()


def test_any_image_format_and_size_is_read(tmp_path: Path) -> None:
    files = {"a.png": png(), "a.json": about(), "b.jpg": png(40), "b.json": about(name="duck")}
    write_tar(tmp_path / "x.tar", files)
    found = data.load(tmp_path)
    assert found.seen.images.shape == (2, 3, 16, 16)
    assert found.heldout is None


def test_a_manifest_decides_what_is_held_out(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "world")
    shards = {path.name: {"split": "seen"} for path in folder.glob("*.tar.gz")}
    shards["dark-seen.tar.gz"]["split"] = "heldout"
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    found = data.load(folder)
    assert len(found.seen) == 16
    assert found.heldout is not None
    assert (found.heldout.images[:, :, :3] < 60).all()  # the dark bar
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a manifest"):
        data.load(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": png()}, "sample 'a' has \\['png'\\]; expected json"),
        ({"a.json": about()}, "expected json and one of webp, png"),
        ({"a.png": png(), "a.json": b"{"}, "the json of sample 'a' is invalid"),
        ({"a.png": png(), "a.json": about(category=3)}, "lacks the string 'category'"),
        ({"a.png": png(), "a.json": b"[]"}, "lacks the string 'name'"),
        ({"a.png": b"no image", "a.json": about()}, "sample 'a': not a readable image"),
        (
            {"a.png": png(), "a.json": about(), "b.png": png(), "b.json": about(subcategory="bug")},
            "files 'owl' under 'bug', 'animals', and another sample under 'bird'",
        ),
    ],
)
def test_an_unusable_sample_is_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "x.tar", files)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path)


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no dataset 'emojis'"):
        data.load("emojis")
    with pytest.raises(ValueError, match="has no"):
        data.load(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"not a tar")
    with pytest.raises(ValueError, match="not a readable tar"):
        data.load(tmp_path)
    (tmp_path / "x.tar").unlink()
    write_tar(tmp_path / "heldout.tar", {"a.png": png(), "a.json": about()})
    with pytest.raises(ValueError, match="is held out; nothing is left to learn from"):
        data.load(tmp_path)


def test_a_shard_comes_back_as_it_was_written_and_is_the_same_every_time(tmp_path: Path) -> None:
    samples = [("b", b"2", {"name": "B"}), ("a", b"1", {"name": "é"})]
    content = write_shard(samples)
    assert content == write_shard(reversed(samples))
    (tmp_path / "x.tar.gz").write_bytes(content)
    assert list(read_shard(tmp_path / "x.tar.gz")) == sorted(samples)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's own leak
def test_webdataset_reads_the_bundled_shards() -> None:
    webdataset = pytest.importorskip("webdataset")
    shard = EMOJI / "emoji-fxemoji.tar.gz"
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert len(samples) == len(list(read_shard(shard)))
    assert {"webp", "json"} <= set(samples[0])


@pytest.fixture(scope="module")
def emoji() -> data.Dataset:
    return data.load("emoji")


def test_the_bundled_dataset_is_what_its_manifest_says(emoji: data.Dataset) -> None:
    manifest = json.loads((EMOJI / "manifest.json").read_text())
    assert {path.name for path in EMOJI.glob("*.tar.gz")} == set(manifest["shards"])
    counts = {"seen": 0, "heldout": 0}
    for name, shard in manifest["shards"].items():
        assert hashlib.sha256((EMOJI / name).read_bytes()).hexdigest() == shard["sha256"], name
        assert shard["license"] in {"Apache-2.0", "CC-BY-4.0", "MIT"}
        counts[shard["split"]] += shard["samples"]
    assert emoji.heldout is not None
    assert counts == {"seen": len(emoji.seen), "heldout": len(emoji.heldout)}
    assert sum(path.stat().st_size for path in EMOJI.iterdir()) < 12e6


def test_the_bundled_taxonomy_is_unicodes(emoji: data.Dataset) -> None:
    taxonomy = emoji.taxonomy
    assert len(taxonomy.concepts) == 1906
    assert len(taxonomy.subcategories) == 98
    assert len(taxonomy.categories) == 9
    apple = next(c for c in taxonomy.concepts if c.name == "red apple")
    assert (apple.key, apple.subcategory, apple.category) == ("1f34e", "food-fruit", "Food & Drink")
    assert "fruit" in apple.keywords
    # Every concept has at least two seen renderings.
    assert torch.bincount(emoji.seen.concept, minlength=1906).min() >= 2


def test_no_held_out_rendering_was_seen(emoji: data.Dataset) -> None:
    assert emoji.heldout is not None
    assert emoji.heldout.sources == ("fluent",)
    assert emoji.seen.sources == ("emojione", "fxemoji", "noto", "noto-v1", "twemoji")
    seen = {image.numpy().tobytes() for image in emoji.seen.images}
    assert not any(image.numpy().tobytes() in seen for image in emoji.heldout.images)
