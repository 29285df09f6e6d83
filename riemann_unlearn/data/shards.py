"""WebDataset shards: tar files in which files that share a key are one sample."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MANIFEST_NAME = "manifest.json"
IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")


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
    with compressed, tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, image, metadata in sorted(samples, key=lambda sample: sample[0]):
            text = json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode()
            for extension, content in (("json", text), ("webp", image)):
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def read_shard(path: Path) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """The samples of a shard: key, encoded image, metadata.

    Raises
    ------
    ValueError
        When the file is no tar, or a sample lacks its image or its metadata.
    """
    parts: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    key, _, extension = member.name.partition(".")
                    parts.setdefault(key, {})[extension.lower()] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable tar file: {error}") from None
    for key, files in parts.items():
        image = next((files[e] for e in IMAGE_EXTENSIONS if e in files), None)
        if image is None or "json" not in files:
            raise ValueError(
                f"{path}: sample {key!r} has {sorted(files)}; expected json and one of "
                f"{', '.join(IMAGE_EXTENSIONS)}"
            )
        try:
            metadata = json.loads(files["json"])
        except ValueError as error:
            raise ValueError(f"{path}: the json of sample {key!r} is invalid: {error}") from None
        yield key, image, metadata
