"""What can be asked of a run, a training and an evaluation: each option in one place.

The command line's flags and their ``--help``, the YAML files of ``--config``, a run directory's
``config.yaml`` and the keywords of Python are all made from the dataclasses here: a new option is a new
field. A value is checked wherever it comes from, and a wrong one ends in one sentence: the option, what it
must be, what was given, and the file that said so.

Nothing heavy is imported (PyYAML only to read or write it), so that the command line answers at once.
"""

from __future__ import annotations

import math
import numbers
import operator
import reprlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar

SEED_LIMIT = 2**63 - 1
"""The largest seed: ``torch.Generator`` takes what fits a signed 64-bit integer."""

C = TypeVar("C", bound="Config")


def about(
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    metavar: str | None = None,
    flag: str | None = None,
) -> dict[str, Any]:
    """The metadata of an option's field.

    Parameters
    ----------
    help : str
        For ``--help``, without a full stop. The default is added there unless it is mentioned.
    low, high : float, optional
        Bounds that are allowed themselves.
    above : float, optional
        A lower bound that is not allowed itself.
    choices : sequence of str
        The values there are.
    metavar : str, optional
        What stands for the value in ``--help``.
    flag : str, optional
        On the command line, where it is not the field's name.
    """
    return {
        "help": help,
        "low": low,
        "high": high,
        "above": above,
        "choices": tuple(choices),
        "metavar": metavar,
        "flag": flag,
    }


@dataclass(frozen=True)
class Config:
    """A set of options; a subclass declares each as a field with metadata by :func:`about`."""

    example: ClassVar[str]
    """A line of YAML for messages."""

    def __post_init__(self) -> None:
        """Convert and check every field; ValueError for a value that no run could use."""
        for entry in fields(self):
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
        >>> RunConfig.check("seed", True)
        Traceback (most recent call last):
        ...
        ValueError: seed must be a whole number from 0 to 9223372036854775807, got True
        """
        metadata = cls.option(name).metadata
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
        return cls.option(name).metadata["flag"] or "--" + name.replace("_", "-")

    @classmethod
    def kind(cls, name: str) -> Any:
        """What an option is: ``str``, ``int``, ``float``, ``bool``, ``Sequence`` or ``Mapping``."""
        return _kind(cls, name)[0]

    @classmethod
    def option(cls, name: str) -> Field[Any]:
        """The field of an option; ValueError, with a suggestion, for a name that means nothing."""
        known = {entry.name: entry for entry in fields(cls)}
        if name not in known:
            import difflib

            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"unknown key {shown(name)}; {hint}Known: {', '.join(known)}")
        return known[name]

    @classmethod
    def expected(cls, name: str) -> str:
        """What an option must be, in words."""
        kind, optional = _kind(cls, name)
        metadata = cls.option(name).metadata
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
        >>> TrainConfig.from_mapping({"epoch": 3}, "train.yaml")
        Traceback (most recent call last):
        ...
        ValueError: train.yaml: unknown key 'epoch'; did you mean 'epochs'? Known: data, epochs, ...
        """
        where = "" if source is None else f"{source}: "
        if not isinstance(mapping, Mapping):
            raise ValueError(
                f"{where}must hold options by name, such as '{cls.example}', got {shown(mapping)}"
            )
        values: dict[str, Any] = {}
        for name, value in mapping.items():
            try:
                cls.option(name)
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


@dataclass(frozen=True)
class RunConfig(Config):
    """What a run is asked to do; its ``config.yaml`` holds exactly these fields.

    Examples
    --------
    >>> RunConfig(forget="food-fruit", seed=3).to_mapping()["forget"]
    ['food-fruit']
    """

    example: ClassVar[str] = "forget: [food-fruit]"

    forget: Sequence[str] = field(
        metadata=about(
            "what to forget: a concept or a label of any level of the data (default: food-fruit)",
            metavar="CONCEPT",
        )
    )
    model: str = field(default="meru-emoji", metadata=about("bundled model or checkpoint"))
    data: str = field(default="emoji", metadata=about("bundled dataset or folder of shards"))
    method: str = field(default="tilt", metadata=about("see 'riemann-unlearn list methods'"))
    settings: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=about(
            "change a setting of the method, such as alpha=0.5 (default: the method's)",
            metavar="NAME=NUMBER",
            flag="--set",
        ),
    )
    seed: int = field(
        default=0, metadata=about("decides batches, views and captions", low=0, high=SEED_LIMIT, metavar="N")
    )
    forget_batch: int | None = field(
        default=None,
        metadata=about("pairs to be forgotten in a batch (default: the method's)", low=1, metavar="N"),
    )
    retain_batch: int | None = field(
        default=None, metadata=about("other pairs in a batch (default: the method's)", low=1, metavar="N")
    )
    saliency: float = field(
        default=1.0,
        metadata=about(
            "move only this share of the weights, those that the forgotten depend on most",
            above=0,
            high=1,
            metavar="SHARE",
        ),
    )
    device: str = field(default="cpu", metadata=about("where to compute, such as cuda", metavar="DEVICE"))


@dataclass(frozen=True)
class TrainConfig(Config):
    """Everything that decides what comes out of a training, besides the model's configuration."""

    example: ClassVar[str] = "epochs: 100"

    data: str = field(default="emoji", metadata=about("bundled dataset or folder of shards"))
    epochs: int = field(default=100, metadata=about("passes over the seen images", low=1, metavar="N"))
    batch_size: int = field(default=256, metadata=about("pairs in a batch", low=1, metavar="N"))
    learning_rate: float = field(
        default=1e-3, metadata=about("of the weights, after the warm-up", above=0, metavar="RATE")
    )
    scalar_learning_rate: float = field(
        default=1e-2,
        metadata=about(
            "of τ, the curvature and the feature scales, which have further to go than a weight has",
            low=0,
            metavar="RATE",
        ),
    )
    weight_decay: float = field(default=0.1, metadata=about("of matrices", low=0, metavar="RATE"))
    warmup_epochs: float = field(
        default=2.0, metadata=about("epochs in which the learning rate rises", low=0, metavar="N")
    )
    entailment_weight: float = field(
        default=0.2, metadata=about("λ, for a space with cones; 0.2 is MERU's", low=0, metavar="λ")
    )
    gradient_clip: float = field(
        default=1.0, metadata=about("largest norm of a gradient", above=0, metavar="NORM")
    )
    precision: str = field(
        default="float32",
        metadata=about(
            "of the towers (bfloat16: autocast); the geometry is always float32",
            choices=("float32", "bfloat16"),
        ),
    )
    group: int = field(
        default=8,
        metadata=about(
            "every other epoch, so many images of one class go into a batch together: what is alike is told "
            "apart by seeing both; 1 leaves every batch to chance",
            low=1,
            metavar="N",
        ),
    )
    evaluate_every: int = field(
        default=10, metadata=about("epochs between two evaluations", low=1, metavar="N")
    )
    seed: int = field(
        default=0, metadata=about("decides weights, batches and views", low=0, high=SEED_LIMIT, metavar="N")
    )
    device: str = field(default="cpu", metadata=about("where to compute, such as cuda", metavar="DEVICE"))


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """What an evaluation is asked to measure."""

    example: ClassVar[str] = "model: meru-emoji"

    model: str = field(default="meru-emoji", metadata=about("bundled model, checkpoint or run"))
    data: str | None = field(
        default=None, metadata=about("dataset or folder of shards (default: the run's, else emoji)")
    )
    forget: Sequence[str] | None = field(
        default=None,
        metadata=about(
            "what counts as forgotten (default: what the run forgot, else food-fruit)", metavar="CONCEPT"
        ),
    )
    audit: str = field(
        default="quick",
        metadata=about(
            "full also asks the features, relearning, membership inference, alignment and hierarchy: about a "
            "minute",
            choices=("quick", "full"),
        ),
    )
    before: str | None = field(
        default=None,
        metadata=about("untouched model, for a full audit (default: the one the run is of)", metavar="MODEL"),
    )
    oracle: str | None = field(
        default=None, metadata=about("model trained without the forgotten, for a full audit", metavar="MODEL")
    )
    measures: Sequence[str] | None = field(
        default=None,
        metadata=about(
            "ask only this, in place of what the audit asks by itself; see 'riemann-unlearn list measures'",
            metavar="NAME",
            flag="--measure",
        ),
    )
    seed: int = field(default=0, metadata=about("of a full audit", low=0, high=SEED_LIMIT, metavar="N"))
    device: str = field(default="cpu", metadata=about("where to compute, such as cuda", metavar="DEVICE"))


def parse_setting(text: str) -> tuple[str, float]:
    """The name and the number of NAME=NUMBER; ValueError for anything else.

    Examples
    --------
    >>> parse_setting("alpha=0.5")
    ('alpha', 0.5)
    """
    name, equals, value = text.partition("=")
    try:
        number = int(value) if value.lstrip("+-").isdecimal() else float(value)
    except ValueError:
        equals = ""
    if not equals:
        raise ValueError(f"--set takes NAME=NUMBER, such as alpha=0.5; got {text!r}")
    return name, number


def read_yaml(path: str | Path) -> Any:
    """What a YAML file says; None for an empty one.

    Plain words are read by YAML 1.2: ``4e-4`` is a number, ``no`` and ``2026-01-01`` are texts.

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
    Dumper.yaml_implicit_resolvers = {key: ours.get(key, []) + theirs.get(key, []) for key in letters}
    return yaml.dump(dict(content), Dumper=Dumper, sort_keys=False, allow_unicode=True)


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
    if choices and value not in choices:
        raise ValueError
    return value


def _number(value: Any, kind: type) -> float:
    if isinstance(value, str):
        # Quoted in YAML, or a text in Python: it may be a name as well as a number, so it is not guessed.
        numeric = value.strip().lstrip("+-").replace(".", "", 1).isdecimal()
        raise ValueError("write it without quotes" if numeric else "")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError
    if kind is int:
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise ValueError from None
    try:
        return float(value)
    except OverflowError:
        raise ValueError from None


def _inside(value: float, metadata: Mapping[str, Any]) -> float:
    low, above, high = metadata["low"], metadata["above"], metadata["high"]
    if (
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


@cache
def _resolvers() -> dict[Any, Any]:
    """PyYAML's table of plain words, by their first letter, with the core schema of YAML 1.2.

    PyYAML follows YAML 1.1, where 4e-4 is a text, 010 is eight, 1:30 is ninety, and "no" is false.
    """
    import re

    table: dict[Any, Any] = {}
    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", r"[-+]?[0-9]+", "-+0123456789"),
        (
            "float",
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            "-+0123456789.",
        ),
        ("merge", r"<<", "<"),
    ):
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
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is there twice", node.start_mark
                    )
            return dict(super().construct_mapping(node, deep))

    Loader.yaml_implicit_resolvers = _resolvers()
    # 010 is ten, as it looks: PyYAML's own constructor takes it as octal.
    Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
    return Loader
