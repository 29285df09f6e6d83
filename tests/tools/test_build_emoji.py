"""The builder, on made-up packages of the real ones' form."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from riemann_unlearn import data
from tools import build_emoji

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect width="8" height="8" fill="{}"/></svg>'


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


def tarball(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tarball for every package the builder asks for."""
    folder = tmp_path / "npm"
    folder.mkdir()
    emoji = [
        {"unified": "1F34E", "name": "RED APPLE", "short_name": "apple", "category": "Food & Drink"},
        {"unified": "1F989", "name": "OWL", "short_name": "owl", "category": "Animals & Nature"},
        {"unified": "1F3FB", "name": None, "short_name": "skin", "category": "Component"},
        {"unified": "1F9FF", "name": "NAZAR", "short_name": "nazar", "category": "Objects"},
    ]
    for entry in emoji:
        entry |= {"subcategory": entry["category"].lower(), "image": f"{entry['unified'].lower()}.png"}
        entry |= {"has_img_google": True, "has_img_twitter": entry["short_name"] != "nazar"}
    words = {"\U0001f34e": {"tts": ["red apple"], "default": ["fruit", "red apple"]}}
    derived = {"\U0001f989": {"tts": ["owl"]}}
    drawings = {f"{name}.svg": SVG.format("green").encode() for name in ("red-apple", "owl")}
    icons = {
        "width": 8,
        "height": 8,
        "icons": {"redapple": {"body": '<rect width="8" height="8" fill="blue"/>'}},
        "aliases": {"owl": {"parent": "redapple"}},
    }
    contents = {
        "emoji-datasource": {"emoji.json": json.dumps(emoji).encode()},
        "cldr-annotations-full": {
            "annotations/en/annotations.json": json.dumps({"annotations": {"annotations": words}}).encode()
        },
        "cldr-annotations-derived-full": {
            "annotationsDerived/en/annotations.json": json.dumps({"a": {"annotations": derived}}).encode()
        },
        "emoji-datasource-google": {
            f"img/google/64/{e['image']}": png("red") for e in emoji if e["short_name"] != "skin"
        },
        "emoji-datasource-twitter": {f"img/twitter/64/{e['image']}": png("white") for e in emoji[:2]},
        "@iconify-json/emojione": {"icons.json": json.dumps(icons).encode()},
        "@iconify-json/noto-v1": {"icons.json": json.dumps(icons).encode()},
        "@iconify-json/fxemoji": {"icons.json": json.dumps({**icons, "aliases": {}}).encode()},
        "fluentui-emoji": {f"icons/modern/{name}": content for name, content in drawings.items()},
    }

    def pinned(package: build_emoji.Package) -> build_emoji.Package:
        path = folder / package.file_name
        return replace(package, sha256=tarball(path, contents[package.name]))

    for name in ("METADATA", "CLDR", "CLDR_DERIVED"):
        monkeypatch.setattr(build_emoji, name, pinned(getattr(build_emoji, name)))
    vendors = tuple(replace(vendor, package=pinned(vendor.package)) for vendor in build_emoji.VENDORS)
    monkeypatch.setattr(build_emoji, "VENDORS", vendors)
    return folder


def test_the_shards_are_built_to_the_byte_and_load(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "emoji"
    arguments = ["--packages", str(packages), "--output", str(output)]
    assert build_emoji.main(arguments) == 0
    assert "emoji-fluent.tar.gz: 2 samples, MIT" in capsys.readouterr().out
    assert build_emoji.main([*arguments, "--check"]) == 0
    assert capsys.readouterr().out == "identical to the byte\n"
    dataset = data.load(output)
    # "nazar" lacks a rendering that is required, and skin tones are no concepts.
    assert [c.name for c in dataset.taxonomy.concepts] == ["owl", "red apple"]
    assert dataset.taxonomy.concepts[1].keywords == ("fruit",)
    # An alias is another name of one drawing, and a drawing serves one concept.
    seen = dataset.seen
    drawn = {name: int((seen.source == i).sum()) for i, name in enumerate(seen.sources)}
    assert drawn == {"emojione": 1, "fxemoji": 1, "noto": 2, "noto-v1": 1, "twemoji": 2}
    assert dataset.heldout is not None
    assert len(dataset.heldout) == 2
    green = dataset.heldout.images[torch.tensor([0])][0][:, 24, 24].tolist()
    assert green[1] > 100 > green[0]
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["shards"]["emoji-noto.tar.gz"]["sha256"] = "0"
    (output / "manifest.json").write_text(json.dumps(manifest))
    assert build_emoji.main([*arguments, "--check"]) == 1
    assert "differs in emoji-noto.tar.gz" in capsys.readouterr().out


def test_a_tampered_package_is_refused(packages: Path) -> None:
    package = build_emoji.METADATA
    (packages / package.file_name).write_bytes(b"something else")
    with pytest.raises(ValueError, match="; delete it"):
        build_emoji.fetch(package, packages)


def test_a_missing_package_needs_npm(packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = build_emoji.METADATA
    tarball_bytes = (packages / package.file_name).read_bytes()
    (packages / package.file_name).unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="npm, which would fetch it, is not installed"):
        build_emoji.fetch(package, packages)
    for script, outcome in (
        ("exit 1", "failed"),
        (f"cp {tmp_path / 'kept.tgz'} {package.file_name}", None),
    ):
        (tmp_path / "kept.tgz").write_bytes(tarball_bytes)
        npm = tmp_path / "npm-bin" / "npm"
        npm.parent.mkdir(exist_ok=True)
        npm.write_text(f"#!/bin/sh\n{script}\n")
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
        if outcome:
            with pytest.raises(RuntimeError, match=outcome):
                build_emoji.fetch(package, packages)
        else:
            assert build_emoji.fetch(package, packages).is_file()


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    decoded = Image.open(io.BytesIO(build_emoji.encode_webp(image))).convert("RGB")
    assert decoded.size == (48, 48)
    assert min(decoded.getpixel((24, 24))) > 250  # type: ignore[type-var, arg-type]
