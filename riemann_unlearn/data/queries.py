"""Looking up what someone typed among the labels of a taxonomy."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path


class UnknownConceptError(ValueError):
    """A concept was asked for that the taxonomy does not have."""


def composed(text: str) -> str:
    """Each accent and its letter as one character, where there is one (Unicode's form NFC).

    Keyboards and file systems differ in which form they give, and readers and tokenizers see no difference.
    """
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """Composed, and without regard to case."""
    # Unicode's canonical caseless matching: folding is defined letter by letter on the decomposed form.
    return composed(unicodedata.normalize("NFD", text).casefold())


def matching(query: str, texts: Iterable[tuple[str, ...]]) -> list[int] | None:
    """The rows of which one of the texts matches a query over captions; None where the query is none.

    Raises
    ------
    ValueError
        For what is no regular expression.
    UnknownConceptError
        When nothing matches.

    Examples
    --------
    >>> texts = [("a red sofa",), ("the sofa is red",), ("a redhead on a sofa",)]
    >>> matching("/red.*sofa/", texts), matching("words:sofa red", texts), matching("red", texts)
    ([0, 2], [0, 1], None)
    """
    prefix, colon, rest = query.partition(":")
    if len(query) > 2 and query[0] == query[-1] == "/":
        try:
            pattern = re.compile(composed(query[1:-1]), re.IGNORECASE)
        except re.error as error:
            raise ValueError(f"{query} is no regular expression: {error}") from None
        rows = [i for i, row in enumerate(texts) if any(pattern.search(text) for text in row)]
    elif colon and prefix.strip() == "words" and _words(rest):
        wanted = _words(rest)
        rows = [i for i, row in enumerate(texts) if any(wanted <= _words(text) for text in row)]
    else:
        return None
    if not rows:
        raise UnknownConceptError(f"no caption matches {query!r}; try fewer words, or a part as /part/")
    return rows


def lasting_query(query: str) -> str:
    """A query as it is, the path of a list so that it is found from any folder."""
    return f"@{Path(query[1:]).expanduser().resolve()}" if query.startswith("@") else query


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", folded(text)))


def spaced(text: str) -> str:
    """Folded, with blanks where names of folders have other characters."""
    return folded(text).replace("_", " ").replace("-", " ")


_FORMS: tuple[Callable[[str], str], ...] = (str, composed, folded, spaced)
"""In what form a query is compared with labels, one after another: a label as written goes before one that
only differs in case, so "Polish" and "polish" can both be asked for."""


class Lookup:
    """The labels of some levels, to be found in any spelling.

    Parameters
    ----------
    levels : sequence of (name, {label: rows})
        From specific to general: what each level is called, and for each of its labels the concepts below it.
    keys : sequence of str
        The concepts' keys; a query that is a character is compared with them by its code points.

    Examples
    --------
    >>> lookup = Lookup([("name", {"owl": [0], "duck": [1]}), ("kind", {"bird": [0, 1]})], ["1f989", "1f986"])
    >>> lookup.find("Bird"), lookup.find("name: duck"), lookup.find("\N{OWL}")
    ((1, [0, 1]), (0, [1]), (0, [0]))
    """

    def __init__(self, levels: Sequence[tuple[str, Mapping[str, list[int]]]], keys: Sequence[str]) -> None:
        self._names = [name for name, _ in levels]
        # By form, then by level: a query is tried in one form at all levels before it is tried in the next.
        self._tables = [[_in_form(table, form) for _, table in levels] for form in _FORMS]
        self._characters = {_without_selectors(key): [row] for row, key in enumerate(keys)}

    def find(self, query: str) -> tuple[int, list[int]]:
        """The number of the level that a query is of, and the concepts it stands for.

        Raises
        ------
        UnknownConceptError
            When it is none of the labels; the message says which come close.
        """
        # As written first: a name may itself begin with "name:".
        for depth, table in enumerate(self._tables[0]):
            if query in table:
                return depth, table[query]
        depths, sought = self._prefixed(query)
        for form, tables in zip(_FORMS, self._tables, strict=True):
            for depth in depths:
                if form(sought) in tables[depth]:
                    return depth, tables[depth][form(sought)]
        # Last, for a character may be a label in its own right. Keys have its code points in lower-case hex.
        points = _without_selectors("-".join(f"{ord(character):04x}" for character in sought))
        if 0 in depths and points in self._characters:
            return 0, self._characters[points]
        # A label that stands at two levels is suggested once.
        known = list(dict.fromkeys(label for depth in depths for label in self._tables[0][depth]))
        close = difflib.get_close_matches(sought, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        kind = "concept" if 0 in depths else self._names[depths[0]]
        raise UnknownConceptError(
            f"no {kind} {query!r}; {hint}'riemann-unlearn list concepts --data DATA' shows all of them"
        )

    def _prefixed(self, query: str) -> tuple[list[int], str]:
        """The levels to look at, and what to look for: "kind: bird" is "bird" at the level called "kind"."""
        prefix, colon, rest = query.partition(":")
        named = [depth for depth, name in enumerate(self._names) if folded(name) == folded(prefix.strip())]
        # A prefix that is no level's name is a part of the label, as in "flag: Norway".
        if colon and named:
            return named, rest.strip()
        return list(range(len(self._names))), query.strip()


def _in_form(table: Mapping[str, list[int]], form: Callable[[str], str]) -> dict[str, list[int]]:
    """A table by its labels in some form; of several that have one form, the first counts."""
    result: dict[str, list[int]] = {}
    for label, rows in table.items():
        result.setdefault(form(label), rows)
    return result


def _without_selectors(key: str) -> str:
    """Code points without the one that only asks for colour, which is often left out in typing."""
    return "-".join(point for point in key.split("-") if point != "fe0f")
