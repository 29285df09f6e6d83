from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from riemann_unlearn import data
from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.data.images import Slice, decode, read
from riemann_unlearn.data.sources.emoji import FOLDER
from riemann_unlearn.data.sources.shards import Shards, expand, read_shard, write_shard
from tests.conftest import write_world


def png(size: int = 16, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes], **options: Any) -> None:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def about(**changes: object) -> bytes:
    return json.dumps({"name": "owl", "subcategory": "bird", "category": "animals", **changes}).encode()


def pairs(*metadata: dict[str, object]) -> dict[str, bytes]:
    """An image for each of several jsons."""
    files = {}
    for number, content in enumerate(metadata):
        files |= {f"{number}.png": png(), f"{number}.json": json.dumps(content).encode()}
    return files


def names(dataset: data.Dataset) -> list[str]:
    return [concept.name for concept in dataset.taxonomy.concepts]


def test_a_folder_of_shards_is_read(world: data.Dataset) -> None:
    assert len(world.seen) == 16
    assert world.heldout is not None
    assert len(world.heldout) == 8
    assert isinstance(world.seen.images, torch.Tensor)
    assert world.seen.images.shape == (16, 3, 16, 16)
    assert world.seen.images.dtype == torch.uint8
    shown = [world.taxonomy.concepts[i].name for i in world.seen.concept]
    assert sorted(shown) == sorted(2 * [c.name for c in world.taxonomy.concepts])
    red = world.seen.images[[n == "red apple" for n in shown]]
    assert (red[:, 0, 12:] > 200).all()
    assert (red[:, 1, 12:] < 60).all()


def test_every_image_says_where_it_comes_from(world: data.Dataset) -> None:
    assert world.seen.sources == ("dark-seen", "plain-seen")
    assert torch.bincount(world.seen.source).tolist() == [8, 8]
    plain = world.seen.subset(world.seen.source == 1)
    assert len(plain) == 8
    assert plain.taxonomy is world.taxonomy
    first = world.seen.subset(torch.tensor([3, 0]))
    assert first.concept.tolist() == world.seen.concept[[3, 0]].tolist()


def test_shards_are_told_apart_by_their_whole_names(tmp_path: Path) -> None:
    for name in ("set.v1.tar", "set.v2.tar", "Set.v3.TAR"):
        write_tar(tmp_path / name, pairs({"name": "owl"}))
    write_tar(
        tmp_path / "z.tgz", pairs({"name": "owl", "vendor": "someone"}, {"name": "owl", "vendor": None})
    )
    assert data.load(tmp_path).seen.sources == ("Set.v3", "set.v1", "set.v2", "someone", "z")


def test_one_shard_may_be_given_instead_of_a_folder(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", pairs({"name": "owl"}, {"name": "cat"}))
    write_tar(tmp_path / "y.tar", pairs({"name": "dog"}))
    assert names(data.load(tmp_path / "x.tar")) == ["cat", "owl"]


def test_any_image_format_and_size_is_read(tmp_path: Path) -> None:
    files = {"a.png": png(), "a.json": about(), "b.jpg": png(40), "b.json": about(name="duck")}
    write_tar(tmp_path / "x.tar", files)
    dataset = data.load(tmp_path)
    assert [tuple(image.shape) for image in dataset.seen.images[torch.arange(2)]] == [
        (3, 16, 16),
        (3, 40, 40),
    ]
    assert dataset.heldout is None
    batch = make_batch(dataset.seen, torch.tensor([1, 0]), (16, 16), torch.Generator().manual_seed(0))
    assert batch.images.shape == (2, 3, 16, 16)


LEVELS = ["title", "genus", "family", "order", "class", "phylum", "kingdom"]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
def test_a_manifest_says_which_fields_are_levels(tmp_path: Path, depth: int) -> None:
    fields = LEVELS[:depth]
    made = [{field: f"{field} {i >> level}" for level, field in enumerate(fields)} for i in range(4)]
    write_tar(tmp_path / "x.tar", pairs(*made))
    (tmp_path / "manifest.json").write_text(json.dumps({"levels": fields}))
    dataset = data.load(tmp_path)
    taxonomy = dataset.taxonomy
    assert [level.name for level in taxonomy.levels] == fields
    assert [len(level) for level in taxonomy.levels] == [max(1, 4 >> level) for level in range(depth)]
    top = taxonomy.levels[min(1, depth - 1)]
    selection = taxonomy.select([f"{top.name}:{top.labels[0]}"])
    assert selection.concepts.sum() == (2 if depth > 1 else 1)
    batch = make_batch(dataset.seen, torch.arange(4), (16, 16), torch.Generator().manual_seed(0))
    assert len(batch.pairings) == depth
    assert batch.texts[batch.pairings[-1].row[0]] == f"{fields[-1]} 0"


def test_names_alone_are_one_level(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", pairs({"name": "owl"}, {"name": "cat"}, {"name": "owl"}))
    dataset = data.load(tmp_path)
    assert [level.name for level in dataset.taxonomy.levels] == ["name"]
    assert dataset.seen.concept.bincount().tolist() == [1, 2]


@pytest.mark.parametrize("form", ["json", "txt", "both", "beside"])
def test_free_captions_are_one_level(tmp_path: Path, form: str) -> None:
    captions = ["a cat on a mat", "an owl at night", "a cat on a mat"]
    files = {}
    for number, caption in enumerate(captions):
        files[f"{number:06}.jpg"] = png()
        about = {} if form == "beside" else {"caption": caption}
        if form != "txt":
            files[f"{number:06}.json"] = json.dumps(about | {"url": "x", "width": 16}).encode()
        if form != "json":
            files[f"{number:06}.txt"] = f"{caption}\n".encode("utf-8-sig")
    write_tar(tmp_path / "x.tar", files)
    dataset = data.load(tmp_path)
    assert [level.name for level in dataset.taxonomy.levels] == ["caption"]
    assert dataset.taxonomy.levels[0].captions == ("a cat on a mat", "an owl at night")
    assert dataset.taxonomy.select(["an owl at night"]).concepts.tolist() == [False, True]
    batch = make_batch(dataset.seen, torch.arange(3), (16, 16), torch.Generator().manual_seed(0))
    assert batch.texts == captions


def test_shards_as_img2dataset_writes_them(tmp_path: Path) -> None:
    files = {}
    for number, caption in enumerate(["a cat", "an owl", "no json", "caption file"]):
        key = f"00000{number:04}"
        about = {"key": key, "caption": None, "url": "x", "status": "success", "error_message": None}
        files |= {f"{key}.jpg": png(), f"{key}.json": json.dumps(about).encode()}
        files[f"{key}.caption" if number == 3 else f"{key}.txt"] = caption.encode()
    del files["000000002.json"]
    write_tar(tmp_path / "00000.tar", files)
    (tmp_path / "00000_stats.json").write_text("{}")
    dataset = data.load(tmp_path)
    captions = ("a cat", "an owl", "caption file", "no json")
    assert dataset.taxonomy.levels[0].captions == captions
    assert dataset.ids == tuple(f"00000.tar/00000{number:04}" for number in range(4))


def test_some_shards_are_asked_for_by_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8, 12):
        write_tar(tmp_path / f"part-{number:03}.tar", pairs({"name": f"number {number}"}))
    dataset = data.load(f"{tmp_path}/part-{{009..011}}.tar")
    assert names(dataset) == ["number 10", "number 11", "number 9"]
    # Its name loads it again, from anywhere.
    monkeypatch.chdir(tmp_path)
    assert data.load("part-{009..011}.tar").name == dataset.name
    assert names(data.load(dataset.name)) == names(dataset)
    assert names(data.load(tmp_path / "part-{008,011,999}.tar")) == ["number 11", "number 8"]
    with pytest.raises(ValueError, match="no dataset"):
        data.load(tmp_path / "part-{100..120}.tar")


def test_patterns_are_a_shells() -> None:
    assert expand("x.tar") == ["x.tar"]
    assert expand("{8..10}.tar") == ["8.tar", "9.tar", "10.tar"]
    assert expand("a{08..09}b{c,d}") == ["a08bc", "a08bd", "a09bc", "a09bd"]
    assert expand("{a}") == ["{a}"]


def test_a_manifest_beside_a_shard_says_what_its_levels_are(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", pairs({"title": "owl"}))
    write_tar(tmp_path / "y.tar", pairs({"title": "cat"}))
    about = {"levels": ["title"], "shards": {"y.tar": {"split": "heldout"}}}
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    assert names(data.load(tmp_path / "x.tar")) == ["owl"]
    with pytest.raises(ValueError, match="is held out"):
        data.load(tmp_path / "y.tar")


def test_images_of_a_plain_tar_are_read_from_where_they_are(tmp_path: Path) -> None:
    noise = Image.effect_noise((64, 64), 90)
    files = {}
    for number, size in enumerate([64, 32, 64]):
        buffer = io.BytesIO()
        noise.resize((size, size)).save(buffer, "PNG")
        files |= {f"{number}.png": buffer.getvalue(), f"{number}.json": about(name=f"owl {number}")}
    write_tar(tmp_path / "x.tar", files)
    slices = [image for _, image, _ in read_shard(tmp_path / "x.tar")]
    assert all(isinstance(image, Slice) for image in slices)
    assert [read(image) for image in slices] == [files[f"{n}.png"] for n in range(3)]
    seen = data.load(tmp_path).seen
    assert isinstance(seen.images, data.EncodedImages)
    for row, image in enumerate(seen.images[torch.arange(3)]):
        assert torch.equal(image, decode(files[f"{row}.png"]))
    # What is cut off later is missed when it is asked for, and named.
    with (tmp_path / "x.tar").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match=r"x\.tar ends before the image does"):
        seen.images[torch.tensor([2])]


def test_samples_of_no_use_are_skipped_and_named(tmp_path: Path) -> None:
    files = pairs(*[{"name": "owl"} for _ in range(57)])
    files |= {"a.json": b'{"name": "owl"}', "b.png": png(), "c.png": png(), "c.json": b"{"}
    write_tar(tmp_path / "x.tar", files)
    with pytest.warns(UserWarning, match=r"3 of 60 images cannot be used: .*'a' \(it has .*'b' .*'c' .*json"):
        assert len(data.load(tmp_path).seen) == 57
    files |= {"d.png": png()}
    write_tar(tmp_path / "x.tar", files)
    with pytest.raises(ValueError, match=r"4 of 61 images cannot be used: .*; \.\.\.\. That is more than 5%"):
        data.load(tmp_path)


def test_a_manifest_decides_what_is_held_out(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "world")
    shards = {path.name: {"split": "seen"} for path in folder.glob("*.tar.gz")}
    shards["dark-seen.tar.gz"]["split"] = "heldout"
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    dataset = data.load(folder)
    assert len(dataset.seen) == 16
    assert dataset.heldout is not None
    assert isinstance(dataset.heldout.images, torch.Tensor)
    assert (dataset.heldout.images[:, :, :3] < 60).all()  # the dark bar
    # A shard that is not in it goes by its name.
    del shards["other-heldout.tar.gz"]
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    assert len(data.load(folder).seen) == 8


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("[]", "is not a manifest"),
        ("{", "is not a manifest"),
        ('{"levels": []}', "is not a manifest"),
        ('{"levels": "name"}', "is not a manifest"),
        ('{"levels": ["name", 3]}', "is not a manifest"),
        ('{"shards": {"plain-seen.tar.gz": {}}}', "is not a manifest"),
        ('{"shards": {"plain-seen.tar.gz": {"split": "held-out"}}}', 'expected .*"seen" or "heldout"'),
        ('{"shards": ["plain-seen.tar.gz"]}', "is not a manifest"),
        ('{"shards": {"gone.tar": {"split": "heldout"}}}', r"names gone.tar, and .* has no such shard"),
        ('{"levels": ["name", "order"]}', "lacks the string 'order'"),
    ],
)
def test_an_unusable_manifest_is_named(tmp_path: Path, manifest: str, message: str) -> None:
    folder = write_world(tmp_path / "world")
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match=message):
        data.load(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": png()}, r"sample 'a' \(it has \['png'\]; expected json"),
        ({"a.json": about()}, r"expected json \(or txt or caption, a caption\) and one of webp, png"),
        ({"a.png": png(), "a.json": b"{"}, r"sample 'a' \(its json or caption is invalid"),
        ({"a.png": png(), "a.json": b"[" * 100_000}, r"sample 'a' \(its json or caption is invalid"),
        ({"a.png": png(), "a.txt": b"\xff\xfe\xfa"}, r"sample 'a' \(its json or caption is invalid"),
        ({"a.png": png(), "a.json": about(category=3)}, r"lacks the string 'category' \(got 3\)"),
        ({"a.png": png(), "a.json": about(subcategory=" ")}, "lacks the string 'subcategory'"),
        ({"a.png": png(), "a.json": b"[]"}, r"sample 'a' \(its json is a list, not an object"),
        ({"a.png": png(), "a.json": b"{}"}, r"sample 'a' \(its json lacks the string 'caption' \(got None\)"),
        ({"a.png": b"no image", "a.json": about()}, "1 of 1 images cannot be used: .*x.tar: sample 'a' "),
        (
            {"a.png": png(), "a.json": about(), "b.png": png(), "b.json": about(subcategory="bug")},
            "files 'owl' under 'bug', 'animals', and another sample under 'bird'",
        ),
        (
            {
                "a.png": png(),
                "a.json": b'{"name": "owl"}',
                "b.png": png(),
                "b.json": b'{"caption": "an owl"}',
            },
            r"1 of 2 images .*sample 'b' \(its json lacks the string 'name'",
        ),
    ],
)
def test_an_unusable_sample_is_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "x.tar", files)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path)


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"not a tar")
    with pytest.raises(ValueError, match="not a readable tar"):
        data.load(tmp_path)
    (tmp_path / "x.tar").unlink()
    write_tar(tmp_path / "heldout.tar", {"a.png": png(), "a.json": about()})
    with pytest.raises(ValueError, match="is held out; nothing is left to learn from"):
        data.load(tmp_path)
    with pytest.raises(ValueError, match="shards have no default place"):
        Shards().load(None)


@pytest.mark.parametrize("form", ["gz", "bz2", "xz", ""])
def test_a_shard_cut_short_is_named(tmp_path: Path, form: str) -> None:
    whole = tmp_path / "whole"
    with tarfile.open(whole, f"w:{form}") as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("a.png")
        entry.size = 50_000
        archive.addfile(entry, io.BytesIO(torch.randint(256, (50_000,), dtype=torch.uint8).numpy().tobytes()))
    (tmp_path / "x.tar").write_bytes(whole.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"x\.tar is not a readable tar file"):
        data.load(tmp_path)


def test_a_corrupted_compressed_shard_is_named(tmp_path: Path) -> None:
    content = bytearray(write_shard([("a", png(), json.loads(about()))]))
    content[40:60] = bytes(20)
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.tar\.gz is not a readable tar file"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    "prefix", ["", "./", "cc3m.v1/", "./a.b/c.d/", "very/" * 30, "/absolute.path/", "Ünïcode.dir/"]
)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_key_is_the_path_up_to_the_first_dot_of_the_file_name(
    tmp_path: Path, prefix: str, form: int
) -> None:
    files = {f"{prefix}{name}": content for name, content in pairs({"name": "owl"}, {"name": "cat"}).items()}
    files[f"{prefix}0.seg.png"] = b"another file of the sample, not its image"
    write_tar(tmp_path / "x.tar", files, format=form)
    # TarFile takes the slash of an absolute path away, as tar does.
    assert [key for key, _, _ in read_shard(tmp_path / "x.tar")] == [f"{prefix}{n}" for n in (0, 1)]
    assert names(data.load(tmp_path)) == ["cat", "owl"]


def test_a_tar_made_of_a_folder_is_read(tmp_path: Path) -> None:
    # As "tar -cf x.tar ." makes it, folders and what macOS and editors leave there included.
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "__MACOSX").mkdir(parents=True)
    target.mkdir()
    for name, content in pairs({"name": "owl"}).items():
        (source / name).write_bytes(content)
        (source / f"._{name}").write_bytes(b"AppleDouble")
        (source / "__MACOSX" / name).write_bytes(b"more of it")
    (source / "README.md").write_text("About these")
    (source / "notes.txt").write_text("About these")
    (source / ".hidden.json").write_text("{}")
    (source / "Makefile").write_text("all:")
    with tarfile.open(target / "x.tar", "w") as archive:
        archive.add(source, ".")
    (target / "._x.tar").write_bytes(b"AppleDouble")
    assert [key for key, _, _ in read_shard(target / "x.tar")] == ["./0"]
    assert names(data.load(target)) == ["owl"]


def test_global_pax_headers_and_links_are_passed_over(tmp_path: Path) -> None:
    files = pairs({"name": "owl"})
    write_tar(tmp_path / "x.tar", files, format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by hand"})
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        link = tarfile.TarInfo("9.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert [key for key, _, _ in read_shard(tmp_path / "x.tar")] == ["0"]


def test_upper_case_extensions_are_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"A.PNG": png(), "A.JSON": about(), "b.Jpeg": png(), "b.Json": about()})
    assert len(data.load(tmp_path).seen) == 2


def test_equal_keys_in_two_shards_are_two_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", pairs({"name": "owl"}))
    write_tar(tmp_path / "y.tar", pairs({"name": "cat"}))
    write_tar(tmp_path / "z-heldout.tar", pairs({"name": "cat"}))
    dataset = data.load(tmp_path)
    assert names(dataset) == ["cat", "owl"]
    assert dataset.heldout is not None
    assert (len(dataset.seen), len(dataset.heldout)) == (2, 1)


def test_a_member_added_again_replaces_the_first(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", pairs({"name": "owl"}))
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        content = json.dumps({"name": "cat"}).encode()
        entry = tarfile.TarInfo("0.json")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    assert [metadata["name"] for _, _, metadata in read_shard(tmp_path / "x.tar")] == ["cat"]


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("night bird", ("night bird",)),
        (["night bird", "hooting"], ("night bird", "hooting")),
        (["", " ", "hooting"], ("hooting",)),
    ],
)
def test_keywords_are_a_list_or_one_string_or_absent(
    tmp_path: Path, keywords: object, expected: tuple[str, ...]
) -> None:
    write_tar(tmp_path / "x.tar", {"a.png": png(), "a.json": about(keywords=keywords)})
    assert data.load(tmp_path).taxonomy.concepts[0].keywords == expected


@pytest.mark.parametrize("keywords", [3, {"a": 1}, ["night", 3], [["night"]], True, [None]])
def test_other_keywords_are_refused_with_the_sample(tmp_path: Path, keywords: object) -> None:
    write_tar(tmp_path / "x.tar", {"a.png": png(), "a.json": about(keywords=keywords)})
    with pytest.raises(ValueError, match=r"x.tar: sample 'a' \(its keywords must be a list of strings, got "):
        data.load(tmp_path)


def test_a_broken_image_is_skipped_and_named(tmp_path: Path) -> None:
    files = pairs(*[{"name": name} for name in ("owl", "cat") for _ in range(20)])
    broken = bytearray(files["7.png"])
    broken[45] ^= 0xFF  # within the compressed pixels: the chunk's checksum is wrong
    files["7.png"] = bytes(broken)
    write_tar(tmp_path / "x.tar", files)
    with pytest.warns(UserWarning, match=r"1 of 40 images cannot be used: .*x\.tar: sample '7' "):
        dataset = data.load(tmp_path)
    assert dataset.seen.concept.bincount().tolist() == [20, 19]


def test_a_shard_comes_back_as_it_was_written_and_is_the_same_every_time(tmp_path: Path) -> None:
    samples: list[tuple[str, bytes, dict[str, Any]]] = [
        ("b", b"2", {"name": "B"}),
        ("a", b"1", {"name": "é"}),
    ]
    content = write_shard(samples)
    assert content == write_shard(reversed(samples))
    (tmp_path / "x.tar.gz").write_bytes(content)
    assert list(read_shard(tmp_path / "x.tar.gz")) == sorted(samples)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's own leak
def test_webdataset_reads_the_bundled_shards() -> None:
    webdataset = pytest.importorskip("webdataset")
    shard = FOLDER / "emoji-fxemoji.tar.gz"
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert len(samples) == len(list(read_shard(shard)))
    assert {"webp", "json"} <= set(samples[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_keys_are_webdatasets(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    files = {}
    for prefix in ("", "./", "cc3m.v1/", "a.b/c.d/"):
        files |= {f"{prefix}{name}": content for name, content in pairs({"name": "owl"}).items()}
        files[f"{prefix}.hidden.png"] = b""
    write_tar(tmp_path / "x.tar", files)
    theirs = [s["__key__"] for s in webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)]
    assert theirs == [key for key, _, _ in read_shard(tmp_path / "x.tar")]
