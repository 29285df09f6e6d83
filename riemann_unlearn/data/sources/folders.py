"""Folders of image files: which files there are, which of them are held out, and how a name reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from riemann_unlearn.data.images import EXTENSIONS

SEEN_NAMES = ("train", "training", "seen")
HELDOUT_NAMES = ("val", "valid", "validation", "test", "testing", "heldout")


def image_files(folder: Path) -> Iterator[str]:
    """Paths of the image files at any depth, relative to ``folder``, in order of folders and names.

    Hidden files are passed over, and links to folders are followed.
    """
    for where, folders, files in os.walk(folder, followlinks=True):
        # In place: os.walk goes on with what is left in the list, in its order.
        folders[:] = sorted(name for name in folders if not _hidden(name))
        prefix = Path(where).relative_to(folder).as_posix()
        for name in sorted(files):
            if name.rpartition(".")[2].lower() in EXTENSIONS and not _hidden(name):
                yield name if prefix == "." else f"{prefix}/{name}"


def split_folders(folder: Path) -> dict[str, bool]:
    """The sub-folders that are parts of a set, as train and val, and whether each is held out; often none.

    They are parts where all sub-folders are called so, and one of them is to be learned from: a class may
    itself be called "test".
    """
    names = [entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry.name)]
    if set(names) <= {*SEEN_NAMES, *HELDOUT_NAMES} and set(names) & set(SEEN_NAMES):
        return {name: name in HELDOUT_NAMES for name in names}
    return {}


def plain(label: str) -> str:
    """A label as one would write it: a folder's name can have no blanks, or is safer without.

    Examples
    --------
    >>> plain("golden_retriever")
    'golden retriever'
    """
    return " ".join(label.replace("_", " ").split()) or label


def plainly(level: str, label: str) -> str:
    """:func:`plain`, as the captions of a taxonomy's levels are asked for."""
    return plain(label)


def folder_with(path: Path, name: str, file: str) -> Path | None:
    """``path``, or the folder ``name`` in it, whichever has the file; so sets are found as they unpack."""
    return next((folder for folder in (path, path / name) if (folder / file).is_file()), None)


def lines(path: Path) -> list[str]:
    """The lines of a list that a set comes with.

    Raises
    ------
    ValueError
        When it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
