"""Tables as people have them (csv, tsv, jsonl, parquet), row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each row with what to call it in a message; a text in a row's place is why it cannot be used.

    Of csv, the first line names the columns, and the delimiter is a tab where that line has one.

    Raises
    ------
    ValueError
        When the file is not a table of its kind, or a package is missing that reads it.
    """
    reader = {".jsonl": _jsonl, ".parquet": _parquet}.get(path.suffix.lower(), _csv)
    try:
        for number, row in reader(path):
            yield f"{path.name}:{number}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table that can be read: {error}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    # utf-8-sig: some programs begin a file with a byte order mark, which else were a part of a column's name.
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if "\t" in file.readline() else ","
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter)
        for row in reader:
            # DictReader puts what stands beyond the last column under None.
            whole = None not in row and None not in row.values()
            yield reader.line_num, row if whole else "it has not as many fields as the first line"


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, f"it is no JSON: {error}"
            else:
                yield number, row if isinstance(row, dict) else "it is no JSON object"


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path} is read by the package pyarrow, which is not installed; install it (pip install "
            "'riemann-unlearn[parquet]'), or give a csv or jsonl"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number, names = 0, _class_names(file.schema_arrow.metadata or {})
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    for column in names.keys() & row.keys():
                        row[column] = names[column].get(row[column], row[column])
                    yield number, row
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no parquet file that can be read: {error}") from None


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, dict[int, str]]:
    """By column, what its numbers stand for, where Hugging Face's datasets wrote it."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: dict(enumerate(about["names"])) for name, about in features.items() if "names" in about}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}  # another program's table
