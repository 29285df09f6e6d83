"""WebDataset shards: tar files in which files that share a key are one sample.

A sample is an image and a ``json`` that says what it shows, or an image and a ``txt`` or ``caption`` with its
caption, as img2dataset and open_clip write them. In the json, one field for each level has the label there;
``manifest.json`` beside the shards may say which fields these are, from specific to general, and which shards
are held out::

    {"levels": ["name", "kind", "realm"],
     "shards": {"a.tar": {"split": "seen"}, "b.tar": {"split": "heldout"}}}

Without ``levels`` they are the ``name`` alone, or where the first sample has none, its ``caption``. Shards of
which the manifest says nothing are held out when they have "heldout" in their name. ``keywords`` (a list of
strings, or one string), ``key`` and ``vendor`` (who made the image) are read where a json has them.

Some of a folder's shards are asked for by a pattern, as by open_clip: ``folder/{00000..00041}.tar``. In tars
that are not compressed, images stay where they are, and are read from there when asked for; of a compressed
one they are held in memory.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from riemann_unlearn.data.images import EXTENSIONS, Encoded, Slice
from riemann_unlearn.data.samples import Dataset
from riemann_unlearn.data.sources.base import Source
from riemann_unlearn.data.sources.collection import CAPTION, Collection
from riemann_unlearn.data.taxonomy import Concept, as_written
from riemann_unlearn.registry import register

MANIFEST_NAME = "manifest.json"
_CAPTIONS = ("txt", "caption")
_TEXTS = ("json", *_CAPTIONS)
_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_SPLITS = ("seen", "heldout")


@register
class Shards(Source):
    """Shards whose levels their manifest names, or that have a name or a caption only."""

    name = "shards"
    description = "a folder of WebDataset shards (.tar, .tar.gz, .tgz), one, or many as {0000..0009}.tar"
    named = False

    def opens(self, path: Path) -> bool:
        """Whether there are shards."""
        return bool(shard_files(path))

    def load(self, path: Path | None) -> Dataset:
        """The shards at ``path``."""
        if path is None:
            raise ValueError("shards have no default place; load them by the path of their folder")
        levels = read_manifest(path).get("levels")
        if levels is None:
            levels = ["name"] if "name" in first_metadata(path) else [CAPTION]
        return load_shards(path, levels)


def load_shards(
    path: Path, levels: Sequence[str], caption: Callable[[str, str], str] = as_written
) -> Dataset:
    """The samples of all shards in a folder, or of one shard.

    Parameters
    ----------
    path : Path
    levels : sequence of str
        The fields of each sample's json that have its labels, from specific to general.
    caption : callable, optional
        As for :class:`~riemann_unlearn.data.Taxonomy`.

    Raises
    ------
    ValueError
        When a shard, the manifest or a sample is not usable; the message says which.
    """
    shards = shard_files(path)
    heldout = _heldout(path, shards)
    collection = Collection(levels, caption)
    for shard in shards:
        stem = shard.name[: -len(_suffix(shard.name))]
        for key, image, metadata in read_shard(shard):
            where = f"{shard}: sample {key!r}"
            if isinstance(metadata, str):
                collection.skip(where, metadata)
                continue
            try:
                concept = _concept(metadata, levels)
            except ValueError as error:
                collection.skip(where, str(error))
                continue
            vendor = metadata.get("vendor")
            source = vendor if isinstance(vendor, str) and vendor else stem
            collection.add(
                where, image, concept, source, heldout=shard.name in heldout, id=f"{shard.name}/{key}"
            )
    return collection.dataset(str(path))


def shard_files(path: Path) -> list[Path]:
    """The shards in a folder or of a pattern, sorted; hidden files, as macOS puts beside others, are none.

    Examples
    --------
    >>> shard_files(Path("gone/{0..9}.tar"))
    []
    """
    files: Iterable[Path] = path.iterdir() if path.is_dir() else map(Path, expand(str(path)))
    return sorted(file for file in files if _suffix(file.name) and file.is_file())


def expand(pattern: str) -> list[str]:
    """What a pattern in braces stands for: {a,b} for either, {08..11} for 08, 09, 10 and 11.

    Examples
    --------
    >>> expand("{x,y}/{08..10}.tar")[1:4]
    ['x/09.tar', 'x/10.tar', 'y/08.tar']
    """
    # Odd parts are what stood in braces.
    parts = re.split(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span is None:
        return inside.split(",")
    first, last = span.groups()
    # As a shell does: with zeros in front, all are of the first's width.
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]


def read_manifest(path: Path) -> dict[str, Any]:
    """What the manifest of a folder, or of the folder that a shard is in, says; nothing where there is none.

    Raises
    ------
    ValueError
        When it is not of the form that the module's docstring shows.
    """
    manifest = (path if path.is_dir() else path.parent) / MANIFEST_NAME
    if not manifest.is_file():
        return {}
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        levels, shards = content.get("levels", ["name"]), content.get("shards", {})
        sound = isinstance(levels, list) and levels and all(isinstance(field, str) for field in levels)
        sound = sound and all(entry["split"] in _SPLITS for entry in shards.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(
            f'{manifest} is not a manifest: expected {{"shards": {{FILE: {{"split": "seen" or "heldout"}}}}, '
            '"levels": [FIELD, ...]}, either of which may be left out'
        )
    result: dict[str, Any] = content
    return result


def first_metadata(path: Path) -> dict[str, Any]:
    """The json of the first sample that has one, by a look into the first shard; empty where that fails."""
    for shard in shard_files(path)[:1]:
        try:
            with tarfile.open(shard, "r|*") as archive:
                for member in archive:
                    file = archive.extractfile(member) if _key(member)[1] == "json" else None
                    if file is not None:
                        metadata = json.loads(file.read())
                        return metadata if isinstance(metadata, dict) else {}
        except (*_TAR_ERRORS, ValueError, RecursionError):
            return {}  # whoever reads the whole will say what is wrong with it
    return {}


def write_shard(samples: Iterable[tuple[str, bytes, dict[str, Any]]]) -> bytes:
    """A gzip-compressed shard of WebP images with their metadata.

    Equal samples give equal bytes: names are sorted, times and owners zero.

    Parameters
    ----------
    samples : iterable of (key, image, metadata)
        Keys without a dot; the image already encoded as WebP.

    Examples
    --------
    >>> content = write_shard([("a", b"...", {"name": "A"})])
    >>> content == write_shard([("a", b"...", {"name": "A"})])
    True
    """
    buffer = io.BytesIO()
    # mtime=0 and no file name: nothing of the moment or the place goes into the header.
    compressed = gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="", compresslevel=9)
    # Closed from the inside out: tar writes its last blocks, gzip its checksum, and then the value is taken.
    with compressed, tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, image, metadata in sorted(samples, key=lambda sample: sample[0]):
            text = json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode()
            for extension, content in (("json", text), ("webp", image)):
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def read_shard(path: Path) -> Iterator[tuple[str, Encoded, dict[str, Any] | str]]:
    """The samples of a shard: key, encoded image, and metadata, or why it is of no use.

    Raises
    ------
    ValueError
        When the file is no tar.
    """
    for key, files in _members(path).items():
        image = next((files[e] for e in EXTENSIONS if e in files), None)
        if image is None and "json" not in files:
            continue  # a README, a table beside the samples
        if image is None or not any(e in files for e in _TEXTS):
            texts = f"json (or {' or '.join(_CAPTIONS)}, a caption)"
            yield key, b"", f"it has {sorted(files)}; expected {texts} and one of {', '.join(EXTENSIONS)}"
        else:
            yield key, image, _metadata(files)


def _members(path: Path) -> dict[str, dict[str, Encoded]]:
    """By key and extension, the files of a shard."""
    # The whole shard before its first sample: members of one key need not stand together, and a later member
    # may take an earlier one's place.
    parts: dict[str, dict[str, Encoded]] = {}
    try:
        # Of a plain tar the headers alone are read, and the captions. A stream is read from end to end.
        plain = _is_plain(path)
        with tarfile.open(path, "r:" if plain else "r|*") as archive:
            for member in archive:
                key, extension = _key(member)
                if not extension:
                    continue
                content: Encoded = b""
                if extension in EXTENSIONS and plain and not member.issparse():
                    content = Slice(str(path), member.offset_data, member.size)
                # Of others the name alone is kept, for a message: a video is not read.
                elif extension in EXTENSIONS or extension in _TEXTS:
                    file = archive.extractfile(member)
                    content = file.read() if file is not None else b""
                # A member appended later under a name that was there replaces it, as tar extracts them.
                parts.setdefault(key, {})[extension] = content
    except _TAR_ERRORS as error:
        raise ValueError(f"{path} is not a readable tar file: {error}") from None
    return parts


def _is_plain(path: Path) -> bool:
    """Whether a tar is not compressed, whatever it is called: its first header says so."""
    with open(path, "rb") as file:
        return file.read(512)[257:262] == b"ustar"


def _metadata(files: dict[str, Encoded]) -> dict[str, Any] | str:
    """What a sample's json and caption say; a text is the reason why they say nothing."""
    # Texts are read at once, whatever they are in: they are bytes.
    texts = {e: content for e in _TEXTS if isinstance(content := files.get(e), bytes)}
    try:
        metadata = json.loads(texts["json"]) if "json" in texts else {}
        captions = [texts[e].decode("utf-8-sig").strip() for e in _CAPTIONS if e in texts]
    except (ValueError, RecursionError) as error:
        return f"its json or caption is invalid: {error}"
    if not isinstance(metadata, dict):
        return f"its json is a {type(metadata).__name__}, not an object"
    # A caption in the json goes before the one beside it; img2dataset writes null where it had none.
    if captions and not metadata.get("caption"):
        metadata["caption"] = captions[0]
    return metadata


_TAR_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading a file that is no whole tar raises, compressed or not."""


def _key(member: tarfile.TarInfo) -> tuple[str, str]:
    """The sample a member belongs to and its extension, by WebDataset's rule; empty for what is of none.

    The key is the name up to the first dot of its last part, so a dot in a folder's name divides nothing; the
    folders stay in the key. A last part that begins with a dot is of no sample, nor is what macOS adds.
    """
    folder, slash, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not member.isfile() or not stem or "__MACOSX" in folder.split("/"):
        return "", ""
    return f"{folder}{slash}{stem}", extension.lower()


def _suffix(name: str) -> str:
    """The part of a shard's file name that says that it is one; empty for other names."""
    if name.startswith("."):
        return ""
    return next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")


def _heldout(path: Path, shards: Sequence[Path]) -> set[str]:
    """File names of the held-out shards."""
    entries = read_manifest(path).get("shards", {})
    # A misspelt file name would leave a held-out shard among the seen, to be trained on.
    missing = sorted(set(entries) - {shard.name for shard in shards})
    if missing and path.is_dir():
        raise ValueError(f"{path / MANIFEST_NAME} names {', '.join(missing)}, and {path} has no such shard")
    by_name = {shard.name for shard in shards if shard.name not in entries and "heldout" in shard.name}
    return by_name | {name for name, entry in entries.items() if entry["split"] == "heldout"}


def _concept(metadata: dict[str, Any], levels: Sequence[str]) -> Concept:
    labels = [metadata.get(field) for field in levels]
    for field, label in zip(levels, labels, strict=True):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"its json lacks the string {field!r} (got {label!r})")
    name, *path = map(str, labels)
    return Concept(str(metadata.get("key") or name), name, _keywords(metadata), tuple(path))


def _keywords(metadata: dict[str, Any]) -> tuple[str, ...]:
    """A sample's keywords; a string is one of them, and null or nothing is none."""
    given = metadata.get("keywords")
    words = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"its keywords must be a list of strings, got {given!r}")
    return tuple(word for word in words if word.strip())
