"""What an option is: a field of a dataclass, with all there is to say of it.

A :class:`Config` converts and checks its fields wherever their values come from: Python, a YAML file or the
command line. A wrong one ends in one sentence: the option, what it must be, what was given, and the file that
said so.
"""

from __future__ import annotations

import math
import numbers
import operator
import reprlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from riemann_unlearn._yaml import read_yaml
from riemann_unlearn.registry import did_you_mean

C = TypeVar("C", bound="Config")


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    metavar: str | None = None,
    flag: str | None = None,
) -> Any:
    """A dataclass field for an option, with all there is to say of it.

    Parameters
    ----------
    default : object
        ``MISSING`` for an option that must be given.
    help : str
        For ``--help``, without a full stop. The default is added there unless it is mentioned.
    low, high : float, optional
        Bounds that are allowed themselves.
    above : float, optional
        A lower bound that is not allowed itself.
    choices : sequence of str
        The values there are. One that ends in a capital letter has any number from 1 on in its place.
    metavar : str, optional
        What stands for the value in ``--help``.
    flag : str, optional
        On the command line, where it is not the field's name.
    """
    bounds = {"low": low, "high": high, "above": above}
    metadata = {"help": help, **bounds, "choices": tuple(choices), "metavar": metavar, "flag": flag}
    if isinstance(default, dict):  # one for each configuration
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """A set of options; a subclass declares each by :func:`option`."""

    example: ClassVar[str]
    """A line of YAML for messages."""

    def __post_init__(self) -> None:
        """Convert and check every field; ValueError for a value that no run could use."""
        for entry in fields(self):
            # The dataclass is frozen: this is the one time that its fields are set to something else.
            object.__setattr__(self, entry.name, self.check(entry.name, getattr(self, entry.name)))

    @classmethod
    def check(cls, name: str, value: Any, label: str | None = None) -> Any:
        """The value of one option as the dataclass keeps it.

        Parameters
        ----------
        name : str
        value : object
            Of Python or read from YAML.
        label : str, optional
            What the option is called in a message, such as ``--seed``.

        Raises
        ------
        ValueError
            With the option, what it must be and what was given.

        Examples
        --------
        >>> from riemann_unlearn.config import RunConfig
        >>> RunConfig.check("seed", True)
        Traceback (most recent call last):
        ...
        ValueError: seed must be a whole number from 0 to 9223372036854775807, got True
        """
        metadata = cls.described(name).metadata
        kind, optional = _kind(cls, name)
        try:
            return _convert(value, kind, metadata, optional)
        except ValueError as error:
            mend = f"; {error}" if str(error) else ""
            raise ValueError(
                f"{label or name} must be {cls.expected(name)}, got {shown(value)}{mend}"
            ) from None

    @classmethod
    def parse(cls, name: str, given: Any) -> Any:
        """The value of one option as the command line gives it: in one text, or several.

        Raises
        ------
        ValueError
            As :meth:`check` does, by the option's flag.

        Examples
        --------
        >>> from riemann_unlearn.config import TrainConfig
        >>> TrainConfig.parse("learning_rate", "4e-4")
        0.0004
        """
        kind = cls.kind(name)
        if kind is Mapping:
            given = dict(map(parse_setting, given))
        elif kind in (int, float):
            given = _number_in(given)
        return cls.check(name, given, cls.flag(name))

    @classmethod
    def flag(cls, name: str) -> str:
        """An option's name on the command line."""
        return cls.described(name).metadata["flag"] or "--" + name.replace("_", "-")

    @classmethod
    def kind(cls, name: str) -> Any:
        """What an option is: ``str``, ``int``, ``float``, ``bool``, ``Sequence`` or ``Mapping``."""
        return _kind(cls, name)[0]

    @classmethod
    def described(cls, name: str) -> Field[Any]:
        """The field of an option; ValueError, with a suggestion, for a name that means nothing."""
        known = {entry.name: entry for entry in fields(cls)}
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"unknown key {shown(name)}; {hint}Known: {', '.join(known)}")
        return known[name]

    @classmethod
    def expected(cls, name: str) -> str:
        """What an option must be, in words."""
        kind, optional = _kind(cls, name)
        metadata = cls.described(name).metadata
        if metadata["choices"]:
            words = "one of " + ", ".join(metadata["choices"])
        elif metadata["low"] is not None and metadata["high"] is not None:
            words = f"{_WORDS[kind]} from {metadata['low']} to {metadata['high']}"
        else:
            bounds = (("above", " above"), ("low", ", at least"), ("high", ", at most"))
            said = [f"{phrase} {metadata[key]}" for key, phrase in bounds if metadata[key] is not None]
            words = "".join([_WORDS[kind], *said])
        return words + " (or left out)" * optional

    @classmethod
    def from_mapping(cls: type[C], mapping: object, source: object = None, **overrides: Any) -> C:
        """A configuration from what a file said.

        Parameters
        ----------
        mapping : mapping
            Options by name.
        source : str or Path, optional
            The file, for messages.
        **overrides
            Options that replace the mapping's.

        Raises
        ------
        ValueError
            For no mapping, an unknown or missing key, or a value that its option cannot have.

        Examples
        --------
        >>> from riemann_unlearn.config import TrainConfig
        >>> TrainConfig.from_mapping({"epoch": 3}, "train.yaml")
        Traceback (most recent call last):
        ...
        ValueError: train.yaml: unknown key 'epoch'; did you mean 'epochs'? Known: data, ...
        """
        where = "" if source is None else f"{source}: "
        if not isinstance(mapping, Mapping):
            raise ValueError(
                f"{where}must hold options by name, such as '{cls.example}', got {shown(mapping)}"
            )
        values: dict[str, Any] = {}
        # One by one first, though the constructor checks them again: only here is it known that the file said
        # so. A wrong value is an error of the file also where an override replaces it.
        for name, value in mapping.items():
            try:
                values[name] = cls.check(name, value)
            except ValueError as error:
                raise ValueError(f"{where}{error}") from None
        values.update(overrides)
        for entry in fields(cls):
            required = entry.default is MISSING and entry.default_factory is MISSING
            if required and entry.name not in values:
                raise ValueError(f"{where}{entry.name} is missing; add it, as in '{cls.example}'")
        return cls(**values)

    @classmethod
    def read_yaml(cls: type[C], path: str | Path, **overrides: Any) -> C:
        """A configuration from a YAML file, as :meth:`from_mapping` takes it.

        Raises
        ------
        ValueError
            Also for a file that cannot be read, is not YAML, or has a key twice.
        """
        return cls.from_mapping(read_yaml(path), path, **overrides)

    def to_mapping(self) -> dict[str, Any]:
        """The options by name, of plain lists, dicts, texts and numbers, as YAML and JSON hold them."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}


def parse_setting(text: str) -> tuple[str, float]:
    """The name and the number of NAME=NUMBER; ValueError for anything else.

    Examples
    --------
    >>> parse_setting("alpha=0.5")
    ('alpha', 0.5)
    """
    name, equals, value = text.partition("=")
    number = _number_in(value)
    if not equals or isinstance(number, str):
        raise ValueError(f"--set takes NAME=NUMBER, such as alpha=0.5; got {text!r}")
    return name, number


def shown(value: object) -> str:
    """A value for a message: one line, not too long."""
    if value is None:
        return "nothing"
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = 60
    return " ".join(shorten.repr(value).split())


_WORDS: Mapping[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Sequence: "a list of one or more texts",
    Mapping: "a mapping of names to values",
}


def _kind(cls: type[Config], name: str) -> tuple[Any, bool]:
    """The key in ``_WORDS`` of an option's type, and whether it can be left at None."""
    # Annotations are texts, since the modules of configurations postpone their evaluation.
    hint = typing.get_type_hints(cls)[name]
    members = typing.get_args(hint)
    optional = type(None) in members
    if optional:
        (hint,) = (member for member in members if member is not type(None))
    return typing.get_origin(hint) or hint, optional


def _convert(value: Any, kind: Any, metadata: Mapping[str, Any], optional: bool) -> Any:
    """``value`` as ``kind``; ValueError, with a hint or without, where it is not one."""
    if value is None and optional:
        return None
    if kind is str:
        return _chosen(_text(value), metadata["choices"])
    if kind is Sequence:
        # A text is a sequence of its letters; one alone is meant whole.
        several = [value] if isinstance(value, (str, PathLike)) else value
        if not isinstance(several, Sequence) or not several:
            raise ValueError
        return tuple(map(_text, several))
    if kind is Mapping:
        # What a setting may be is the method's to say.
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError
        return dict(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError
        return value
    return _inside(_number(value, kind), metadata)


def _number_in(text: str) -> int | float | str:
    """The number that a text is; the text itself, for a message to show, where it is none."""
    # int first: a seed beyond 2^53 would lose digits as a float.
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _text(value: Any) -> str:
    if isinstance(value, PathLike):
        return str(value)
    if not isinstance(value, str):
        number = isinstance(value, numbers.Number) and not isinstance(value, bool)
        raise ValueError(f"write {value!r} in quotes" if number else "")
    return value


def _chosen(value: str, choices: Sequence[str]) -> str:
    if choices and not any(_is_of_form(value, choice) for choice in choices):
        raise ValueError
    return value


def _is_of_form(value: str, choice: str) -> bool:
    """Whether a value is a choice, or one with a number where the choice has a capital letter."""
    if not choice[-1].isupper():
        return value == choice
    number = value.removeprefix(choice[:-1])
    return number != value and number.isascii() and number.isdecimal() and number[0] != "0"


def _number(value: Any, kind: type) -> float:
    if isinstance(value, str):
        # Quoted in YAML, or a text in Python: it may be a name as well as a number, so it is not guessed.
        numeric = value.strip().lstrip("+-").replace(".", "", 1).isdecimal()
        raise ValueError("write it without quotes" if numeric else "")
    # Python's True is the integer 1, and a seed of True is a mistake.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError
    if kind is int:
        try:
            # Takes the integers of NumPy, and no float, not even 3.0.
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise ValueError from None
    try:
        # OverflowError is for an integer too large for any float.
        return float(value)
    except OverflowError:
        raise ValueError from None


def _inside(value: float, metadata: Mapping[str, Any]) -> float:
    low, above, high = metadata["low"], metadata["above"], metadata["high"]
    if (
        # First, for NaN is neither below a bound nor above it.
        not math.isfinite(value)
        or (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    ):
        raise ValueError
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value
