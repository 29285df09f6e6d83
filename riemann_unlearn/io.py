"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never a part.

    The content goes to a temporary file in the same folder, which then takes the place of ``path``
    in one step. Strings are encoded as UTF-8.

    Raises
    ------
    OSError
        With ``path`` as its file name, when it cannot be written, as on a full disk.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atomic_write(pathlib.Path(folder) / "a.txt", "whole")
    ...     (pathlib.Path(folder) / "a.txt").read_text()
    'whole'
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        _replace(path, data)
    except OSError as error:
        # The system names the temporary file, or none: a write to an open file does not know its name.
        raise OSError(error.errno, error.strerror, str(path)) from None


def _replace(path: Path, data: bytes) -> None:
    # In the same folder, hence on the same file system: os.replace cannot cross to another.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # Else the name could reach the disk before the content, and a power cut leave an empty file.
            os.fsync(file.fileno())
        # mkstemp makes files private; give this one the permissions an ordinary write would.
        # The mask can only be read by setting it.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    # Also of Ctrl-C: no temporary file stays behind.
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
