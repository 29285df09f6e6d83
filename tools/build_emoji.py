"""Rebuild the bundled emoji shards from the npm packages they come from.

    python -m tools.build_emoji --packages DIR --output DIR
    python -m tools.build_emoji --packages DIR --check

Needs the ``test`` extra (resvg for the SVG sources) and, for packages that are not yet in ``--packages``,
npm. The packages are pinned by version and SHA-256. With the tool versions that the manifest records the
result is the same to the byte; ``--check`` builds into a temporary folder and compares.

One shard holds one vendor's renderings: a gzip-compressed tar in WebDataset's form, each sample an image
``KEY.webp`` (48 x 48, on white) and ``KEY.json`` with the name, keywords, subcategory and category.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL
from PIL import Image, features
from tqdm import tqdm

from riemann_unlearn.data import Concept
from riemann_unlearn.data.sources.emoji import FOLDER, LEVELS
from riemann_unlearn.data.sources.shards import MANIFEST_NAME, write_shard
from riemann_unlearn.io import atomic_write

IMAGE_SIZE = 48
SVG_SIZE = 192
"""SVG sources are rasterized at four times the size and filtered down like the bitmaps."""
WEBP_QUALITY = 85


@dataclass(frozen=True)
class Package:
    """An npm package, pinned."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """What ``npm pack`` calls the tarball."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class Vendor:
    """A set of renderings, and under which terms it may be shipped."""

    name: str
    split: str
    package: Package
    source: str
    license: str
    attribution: str


METADATA = Package(
    "emoji-datasource", "16.0.0", "2006725061dc0098daa832d65f854a7bec0740af2eb47cb5b23d89f7e2c849f9"
)
CLDR = Package(
    "cldr-annotations-full", "48.2.0", "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1"
)
CLDR_DERIVED = Package(
    "cldr-annotations-derived-full",
    "48.2.0",
    "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
)
VENDORS = (
    Vendor(
        "noto",
        "seen",
        Package(
            "emoji-datasource-google",
            "16.0.0",
            "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        ),
        "png",
        "Apache-2.0",
        "Noto Emoji, Google Inc.",
    ),
    Vendor(
        "twemoji",
        "seen",
        Package(
            "emoji-datasource-twitter",
            "16.0.0",
            "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        ),
        "png",
        "CC-BY-4.0",
        "Twemoji, Twitter, Inc. and other contributors",
    ),
    Vendor(
        "emojione",
        "seen",
        Package(
            "@iconify-json/emojione",
            "1.2.3",
            "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        ),
        "iconify",
        "CC-BY-4.0",
        "EmojiOne 2, Ranks.com Inc.",
    ),
    Vendor(
        "noto-v1",
        "seen",
        Package(
            "@iconify-json/noto-v1",
            "1.2.5",
            "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        ),
        "iconify",
        "Apache-2.0",
        "Noto Emoji (2013-2017 'blob' design), Google Inc.",
    ),
    Vendor(
        "fxemoji",
        "seen",
        Package(
            "@iconify-json/fxemoji",
            "1.2.2",
            "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        ),
        "iconify",
        "Apache-2.0",
        "Firefox OS Emoji, Mozilla",
    ),
    Vendor(
        "fluent",
        "heldout",
        Package(
            "fluentui-emoji", "1.3.0", "ec892e607e854859b812c7d827801756adc19955b0ef56d4ae8afcddd19492c5"
        ),
        "svg",
        "MIT",
        "Fluent Emoji, Microsoft Corporation",
    ),
)


@dataclass(frozen=True)
class _Entry:
    """A concept with the spellings under which a vendor may file it."""

    concept: Concept
    image: str
    spellings: tuple[str, ...]


def build(packages: Path, output: Path) -> dict[str, Any]:
    """Write all shards and the manifest into ``output``; returns the manifest.

    Parameters
    ----------
    packages : Path
        Folder of npm tarballs; those that are missing are fetched with ``npm pack``.
    output : Path
        Folder to write to; made if missing.

    Raises
    ------
    ValueError
        When a tarball is not the pinned one.
    RuntimeError
        When a package is missing and npm is not there to fetch it.
    """
    import resvg_py

    output.mkdir(parents=True, exist_ok=True)
    entries = _read_entries(packages)
    shards: dict[str, Any] = {}
    for vendor in VENDORS:
        file_name = f"emoji-{vendor.name}.tar.gz"
        samples = []
        renderings = _RENDERINGS[vendor.source](fetch(vendor.package, packages), entries)
        for entry, image in tqdm(renderings, desc=vendor.name, unit="image", disable=None):
            concept = entry.concept
            metadata = {
                "key": concept.key,
                "name": concept.name,
                "caption": concept.name,
                "keywords": list(concept.keywords),
                **dict(zip(LEVELS[1:], concept.path, strict=True)),
                "vendor": vendor.name,
            }
            samples.append((f"{vendor.name}-{concept.key}", encode_webp(image), metadata))
        content = write_shard(samples)
        atomic_write(output / file_name, content)
        shards[file_name] = {
            "split": vendor.split,
            "samples": len(samples),
            "sha256": hashlib.sha256(content).hexdigest(),
            "vendor": vendor.name,
            "license": vendor.license,
            "attribution": vendor.attribution,
            "package": asdict(vendor.package),
        }
    manifest = {
        "name": "emoji",
        "shards": shards,
        "metadata": [asdict(package) for package in (METADATA, CLDR, CLDR_DERIVED)],
        "tools": {
            "pillow": PIL.__version__,
            "libwebp": features.version("webp"),
            "resvg_py": resvg_py.__version__,
            "zlib": features.version("zlib"),
        },
    }
    atomic_write(output / MANIFEST_NAME, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest


def fetch(package: Package, folder: Path) -> Path:
    """The package's tarball in ``folder``, fetched with npm if missing, and verified."""
    path = folder / package.file_name
    if not path.is_file():
        if shutil.which("npm") is None:
            raise RuntimeError(f"{path} is missing and npm, which would fetch it, is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not path.is_file():
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != package.sha256:
        raise ValueError(f"{path} has SHA-256 {sha256}, expected {package.sha256}; delete it")
    return path


def _read_entries(packages: Path) -> list[_Entry]:
    """All fully-qualified emoji without skin tones, in the order of the metadata package."""
    annotations: dict[str, dict[str, list[str]]] = {}
    for package, member in (
        (CLDR, "package/annotations/en/annotations.json"),
        (CLDR_DERIVED, "package/annotationsDerived/en/annotations.json"),
    ):
        (tree,) = _read_json(fetch(package, packages), member).values()
        annotations.update(tree["annotations"])
    entries = []
    for emoji in _read_json(fetch(METADATA, packages), "package/emoji.json"):
        drawn = emoji["has_img_google"] and emoji["has_img_twitter"]
        if emoji["category"] == "Component" or not drawn:
            continue
        character = "".join(chr(int(point, 16)) for point in emoji["unified"].split("-"))
        # CLDR files an emoji with or without its variation selector.
        about = annotations.get(character) or annotations[character.replace("\ufe0f", "")]
        name = about["tts"][0]
        concept = Concept(
            key=emoji["unified"].lower(),
            name=name,
            keywords=tuple(word for word in about.get("default", []) if word != name),
            path=(emoji["subcategory"], emoji["category"]),
        )
        flag = [name.replace("flag: ", "flag for "), name.replace("flag: ", "")]
        plain = [_slug(text) for text in (name, *flag, emoji["name"] or name, emoji["short_name"])]
        spellings = dict.fromkeys(word for text in plain for word in (text, text.replace("-", "")))
        entries.append(_Entry(concept, emoji["image"], tuple(spellings)))
    return entries


def _png_renderings(path: Path, entries: list[_Entry]) -> Iterator[tuple[_Entry, Image.Image]]:
    """Bitmaps of 64 x 64, filed by code point."""
    with tarfile.open(path) as archive:
        vendor = path.name.split("-")[2]
        wanted = {f"package/img/{vendor}/64/{entry.image}": entry for entry in entries}
        images = {}
        for member in archive:
            if member.name in wanted:
                images[member.name] = Image.open(io.BytesIO(_content(archive, member)))
                images[member.name].load()
    for name, entry in wanted.items():
        yield entry, images[name]


def _svg_renderings(path: Path, entries: list[_Entry]) -> Iterator[tuple[_Entry, Image.Image]]:
    """One SVG file an emoji, filed by name; the coloured style with gradients."""
    with tarfile.open(path) as archive:
        sources = {
            Path(member.name).stem: _content(archive, member).decode()
            for member in archive
            if member.name.startswith("package/icons/modern/") and member.name.endswith(".svg")
        }
    for entry, name in _assign(entries, set(sources)):
        yield entry, _rasterize(sources[name])


def _iconify_renderings(path: Path, entries: list[_Entry]) -> Iterator[tuple[_Entry, Image.Image]]:
    """Iconify's JSON: the bodies of all SVGs in one file, filed by name."""
    icons = _read_json(path, "package/icons.json")
    for entry, name in _assign(entries, set(icons["icons"])):
        icon = icons["icons"][name]
        left, top, width, height = (
            icon.get(key, icons.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        yield (
            entry,
            _rasterize(
                '<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
            ),
        )


_RENDERINGS: dict[str, Callable[[Path, list[_Entry]], Iterator[tuple[_Entry, Image.Image]]]] = {
    "png": _png_renderings,
    "svg": _svg_renderings,
    "iconify": _iconify_renderings,
}


def _assign(entries: list[_Entry], names: set[str]) -> list[tuple[_Entry, str]]:
    """Which drawing belongs to which concept; no drawing to two.

    The first spelling, the CLDR name, is tried for every concept before the second is for any: "cow" is the
    cow, and not the cow face, although that is "cow" to those who type it.
    """
    drawings: dict[int, str] = {}
    for attempt in range(max(len(entry.spellings) for entry in entries)):
        for position, entry in enumerate(entries):
            name = entry.spellings[attempt] if attempt < len(entry.spellings) else None
            if position not in drawings and name in names:
                drawings[position] = name
                names = names - {name}
    return [(entries[position], drawings[position]) for position in sorted(drawings)]


def _rasterize(svg: str) -> Image.Image:
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=SVG_SIZE, height=SVG_SIZE)
    return Image.open(io.BytesIO(bytes(png)))


def encode_webp(image: Image.Image, size: int = IMAGE_SIZE) -> bytes:
    """On white, filtered down to the dataset's size, as WebP."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    small = white.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=WEBP_QUALITY, method=6)
    return buffer.getvalue()


def _slug(text: str) -> str:
    """Lower case ASCII words joined by hyphens, as icon sets file their emoji."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _read_json(tarball: Path, member: str) -> Any:
    with tarfile.open(tarball) as archive:
        return json.loads(_content(archive, archive.getmember(member)))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} in {archive.name!r} is not a file")
    return file.read()


def main(arguments: list[str] | None = None) -> int:
    """Build the shards, or check that they come out as the manifest says."""
    parser = argparse.ArgumentParser(description="Rebuild the bundled emoji shards.")
    parser.add_argument("--packages", type=Path, required=True, help="folder of npm tarballs")
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true", help="compare with what is in --output")
    options = parser.parse_args(arguments)
    if not options.check:
        manifest = build(options.packages, options.output)
        for name, shard in manifest["shards"].items():
            print(f"{name}: {shard['samples']} samples, {shard['license']}")
        return 0
    committed = json.loads((options.output / MANIFEST_NAME).read_text())
    with tempfile.TemporaryDirectory() as folder:
        rebuilt = build(options.packages, Path(folder))
    if rebuilt == committed:
        print("identical to the byte")
        return 0
    differing = [n for n in rebuilt["shards"] if rebuilt["shards"][n] != committed["shards"].get(n)]
    print(f"differs in {', '.join(differing) or 'the manifest'}")
    print(f"tools here {rebuilt['tools']}, recorded {committed['tools']}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
