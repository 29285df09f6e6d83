"""What a source of data is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from riemann_unlearn.data.samples import Dataset
from riemann_unlearn.registry import Registry

SOURCES: Registry[Source | type[Source]] = Registry("data source", home="riemann_unlearn.data.sources")


class Source(ABC):
    """Something that datasets can be loaded from: by its own name, from a path, or both.

    A third party's is a subclass in a file of theirs::

        @ru.register
        class Flags(ru.data.Source):
            name = "flags"
            description = "a folder of flags, named by their country"

            def opens(self, path):
                return (path / "flags.csv").is_file()

            def load(self, path):
                ...
                return ru.data.Dataset("flags", ru.data.Samples(...), None)
    """

    registry: ClassVar = SOURCES
    name: str
    description: str
    """What can be loaded with it, in half a sentence."""
    named: bool = True
    """Whether its name alone says what to load; False for a source that needs a path."""

    def opens(self, path: Path) -> bool:
        """Whether this is of the form that the source reads; by a look, without reading all of it.

        Parameters
        ----------
        path : Path
            A file or folder that exists.
        """
        return False

    @abstractmethod
    def load(self, path: Path | None) -> Dataset:
        """The dataset at ``path``; with None, the one that the source itself stands for.

        Whatever it is called, :func:`riemann_unlearn.data.load` names it by what finds it again.

        Raises
        ------
        ValueError
            When it is missing or not usable; the message says what, and which part.
        """
