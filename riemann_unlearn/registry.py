"""Registries: what can be named, listed and added to from outside, all of one kind.

A method, a measure, a data source, a space, a model family and an operator's backend are each filed by name
in the :class:`Registry` of their kind. Ours are filed by :func:`register`, and so are a third party's::

    @ru.register
    class MyMethod(ru.unlearning.GradientMethod):
        name = "mine"
        ...

    ru.unlearn(forget="food-fruit", method="mine")

Wherever a name goes, an instance goes, so registering is for those who want the name.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Entry = TypeVar("Entry")


class Registry(Mapping[str, T], Generic[T]):
    """Entries of one kind by name, in the order in which they were registered.

    Parameters
    ----------
    kind : str
        What an entry is called in messages, such as "method".
    home : str
        The module whose import registers this library's own entries. It is imported when the registry is
        first looked into, so that asking for a name costs an import and importing the library does not.

    Examples
    --------
    >>> colours: Registry[str] = Registry("colour", home="riemann_unlearn.registry")
    >>> colours.add("crimson", "#dc143c")
    >>> colours["crimsn"]
    Traceback (most recent call last):
    ...
    ValueError: no colour 'crimsn'; did you mean 'crimson'? There are: crimson
    """

    def __init__(self, kind: str, home: str) -> None:
        self.kind, self._home = kind, home
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """File ``entry`` under ``name``.

        Raises
        ------
        ValueError
            When the name is taken by something else. A class defined again under its own module and name
            (a cell of a notebook run twice) takes the place of the old one.
        """
        # Not _loaded: home files its entries by this while it is being imported. A name that is added before
        # and is one of ours is refused when home comes to it.
        known = self._entries.get(name)
        if known is not None and _origin(known) != _origin(entry):
            raise ValueError(f"there is a {self.kind} {name!r} already ({known!r}); choose another name")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        entries = self._loaded()
        if name not in entries:
            there_are = f"{did_you_mean(name, entries)}There are: {', '.join(entries)}"
            raise ValueError(f"no {self.kind} {name!r}; {there_are}")
        return entries[name]

    def __contains__(self, name: object) -> bool:
        # Mapping's own asks by KeyError, and what is missing here is a ValueError with a suggestion.
        return name in self._loaded()

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())

    def _loaded(self) -> dict[str, T]:
        # A look-up in sys.modules after the first time. While home is being imported it is there in part, and
        # what it has filed so far is what there is.
        importlib.import_module(self._home)
        return self._entries


def register(entry: Entry) -> Entry:
    """File a class or an instance in the registry of its kind; usable as a decorator.

    Parameters
    ----------
    entry : class or instance
        Of a method, measure, data source, space, model family or backend; its ``name`` is what it is asked
        for by.

    Returns
    -------
    The same entry.

    Raises
    ------
    TypeError
        For something that is of no kind that has a registry, or has no name.
    ValueError
        When the name is taken.
    """
    # A base class holds the registry of its kind, so that classes and instances of it are asked alike.
    registry, name = getattr(entry, "registry", None), getattr(entry, "name", None)
    if not isinstance(registry, Registry):
        raise TypeError(
            f"cannot register {entry!r}: expected a method, measure, data source, space, model family or "
            "backend, that is a subclass of its base class or an instance of one"
        )
    if not isinstance(name, str) or not name:
        raise TypeError(f"cannot register {entry!r}: it needs a name, as in 'name = \"mine\"'")
    registry.add(name, entry)
    return entry


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A question for a message about a name that is none, with a blank behind it; empty if none is like it.

    Examples
    --------
    >>> did_you_mean("titl", ["tilt", "hac"])
    "did you mean 'tilt'? "
    """
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def import_files(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, for what registers itself in it.

    Rooms in which each file is one thing end with it: a file put there is found, and no list names it.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    path : iterable of str
        Its ``__path__``.
    """
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


def _origin(entry: Any) -> tuple[str, str]:
    """Where an entry was defined."""
    # An instance's is its class's: another of the same class and name takes its place.
    kind = entry if isinstance(entry, type) else type(entry)
    return kind.__module__, kind.__qualname__
