"""YAML as it looks: plain words are read by YAML 1.2, and no key stands twice.

PyYAML follows YAML 1.1, where ``4e-4`` is a text, ``010`` is eight, ``1:30`` is ninety and ``no`` is false.
Of YAML 1.1's numbers, those that look like no other are read too: ``1_000``, ``0x1F`` and ``0b11``.
It is imported where it is used: the command line asks for it only when there is a file to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


def read_yaml(path: str | Path) -> Any:
    """What a YAML file says; None for an empty one.

    Plain words are read by YAML 1.2: ``4e-4`` is a number, ``no`` and ``2026-01-01`` are texts. So are the
    numbers of YAML 1.1 that look like no other, such as ``1_000``.

    Raises
    ------
    ValueError
        When the file cannot be read, is not YAML, or has a key twice.
    """
    import yaml

    try:
        # Some editors begin a file with a byte order mark.
        return yaml.load(Path(path).read_text(encoding="utf-8-sig"), _loader())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError) as error:  # lists within lists without end; a number of 5,000 digits
        raise ValueError(f"{path} cannot be read: {error}") from None


def dump_yaml(content: Mapping[str, Any]) -> str:
    """YAML that :func:`read_yaml` reads back, and readers of YAML 1.1 as well.

    A text is in quotes where either version would take it for something else.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        """Both versions' plain words."""

    ours, theirs = _resolvers(), yaml.SafeDumper.yaml_implicit_resolvers
    letters = {*ours, *theirs}
    # PyYAML writes a text without quotes where no table would read the word as something else, so it is given
    # both tables. Ours stands first, for the first match is what a word is.
    Dumper.yaml_implicit_resolvers = {key: ours.get(key, []) + theirs.get(key, []) for key in letters}
    return yaml.dump(dict(content), Dumper=Dumper, sort_keys=False, allow_unicode=True)


@cache
def _resolvers() -> dict[Any, Any]:
    """PyYAML's table of plain words, by their first letter, with the core schema of YAML 1.2."""
    import re

    table: dict[Any, Any] = {}
    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        (
            "int",
            r"[-+]?([0-9][0-9_]*|0x[0-9a-fA-F_]*[0-9a-fA-F]|0o[0-7_]*[0-7]|0b[01_]*[01])",
            "-+0123456789",
        ),
        (
            "float",
            r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            "-+0123456789.",
        ),
        ("merge", r"<<", "<"),
    ):
        # PyYAML looks a word up by its first letter, the empty word by "", and tries the entries in turn: int
        # stands before float, whose pattern takes whole numbers as well.
        for letter in first:
            entry = (f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"))
            table.setdefault(letter, []).append(entry)
    return table


@cache
def _loader() -> Any:
    """PyYAML's safe loader, with the plain words of YAML 1.2 and no key twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            # PyYAML keeps the last of two without a word. Two merges (<<) are no such mistake.
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is there twice", node.start_mark
                    )
            return dict(super().construct_mapping(node, deep))

    # An attribute of the subclass: a change of SafeLoader's own table would be one for the whole process.
    Loader.yaml_implicit_resolvers = _resolvers()
    Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: _integer(node.value))
    return Loader


def _integer(word: str) -> int:
    """A whole number as it looks: 010 is ten, which PyYAML's own constructor takes as octal."""
    word = word.replace("_", "")
    return int(word, 0 if word.lstrip("+-")[:2] in ("0x", "0o", "0b") else 10)
