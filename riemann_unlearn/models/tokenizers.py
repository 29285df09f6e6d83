"""The tokenizer of a text tower, by its configuration: open_clip's byte pairs, or Hugging Face's.

A configuration comes with a checkpoint, from anywhere. So a vocabulary that it names lies beside the weights
or is bundled, is no link out of its folder, and is not unpacked beyond a bound; and Hugging Face's files are
taken from the checkpoint's folder, or from the hub where the model itself was asked for by its name there.
"""

from __future__ import annotations

import gzip
import importlib.util
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from riemann_unlearn.models.configuration import FLAG, Rule, check, one_of

BUNDLED = Path(__file__).parent / "bundled"
"""Folder of the bundled models and their vocabulary."""

MAX_VOCABULARY = 2**26
"""Largest vocabulary in bytes, unpacked; CLIP's has 3 million. A few kB of gzip can hold gigabytes."""

_BYTE_PAIRS: dict[str, Rule] = {
    # No separator of any system, no colon of a drive, no NUL, which no path may hold. ".." passes and does no
    # harm: it is a folder, and only files are found.
    "bpe_path": (
        lambda value: (
            isinstance(value, str)
            and re.fullmatch(r"[^/\\:\0]+", value) is not None
            and len(value.encode(errors="replace")) < 256
        ),  # what a file system takes
        "the name of a file beside the checkpoint, without a folder",
    ),
    "clean": one_of("lower", "whitespace", "canonicalize"),
    # They go into a regular expression as they are.
    "additional_special_tokens": (
        lambda value: (
            isinstance(value, (list, tuple))
            and all(isinstance(token, str) and re.fullmatch(r"[\w<>/ -]+", token) for token in value)
        ),
        "a list of strings of letters, digits and <>/_-",
    ),
}
_HUGGING_FACE: dict[str, Rule] = {
    "clean": one_of("lower", "whitespace", "canonicalize"),
    "strip_sep_token": FLAG,
    "language": (
        lambda value: isinstance(value, str) and re.fullmatch(r"\w+", value) is not None,
        "a language's name",
    ),
}
_HF_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
"""By which files a folder is known to hold a Hugging Face tokenizer."""


def make_tokenizer(
    text_cfg: Mapping[str, Any], folder: Path | None = None, *, hub: bool = False
) -> tuple[Any, Path | None]:
    """The tokenizer of a ``text_cfg``, and the file of its byte pairs, unless that is open_clip's or bundled.

    Parameters
    ----------
    text_cfg : mapping
        ``context_length``, ``tokenizer_kwargs``, and for Hugging Face's ``hf_tokenizer_name`` and
        ``tokenizer_mode``, as open_clip understands them.
    folder : Path, optional
        Where its files are looked for first.
    hub : bool
        Whether a Hugging Face tokenizer that is not there may be had from the hub by its name.

    Raises
    ------
    ValueError
        For a tokenizer that is not there, a key or value that is not understood, or a vocabulary that is not
        in ``folder`` itself, or not one.
    """
    arguments = text_cfg.get("tokenizer_kwargs")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise ValueError(f"text_cfg.tokenizer_kwargs must be a mapping, got {type(arguments).__name__}")
    arguments = dict(arguments or {})
    if text_cfg.get("hf_tokenizer_name"):
        return _hugging_face(text_cfg, arguments, folder, hub), None
    if text_cfg.get("tokenizer_mode") is not None:
        raise ValueError(
            f"text_cfg.tokenizer_mode is {text_cfg['tokenizer_mode']!r} and there is no hf_tokenizer_name: "
            "only Hugging Face tokenizers have modes"
        )
    check(arguments, _BYTE_PAIRS, "text_cfg.tokenizer_kwargs.")
    vocabulary = None
    if "bpe_path" in arguments:
        vocabulary = _find_vocabulary(arguments["bpe_path"], folder)
        arguments["bpe_path"] = str(vocabulary)
    tokenizer = SimpleTokenizer(context_length=text_cfg.get("context_length", 77), **arguments)
    # A bundled file is found by its name wherever this library is, so it need not be saved beside weights.
    own = vocabulary is not None and vocabulary.parent != BUNDLED
    return tokenizer, vocabulary if own else None


def _hugging_face(
    text_cfg: Mapping[str, Any], arguments: Mapping[str, Any], folder: Path | None, hub: bool
) -> HFTokenizer:
    name, mode = text_cfg["hf_tokenizer_name"], text_cfg.get("tokenizer_mode")
    if mode not in (None, "", "clips"):
        raise ValueError(f"text_cfg.tokenizer_mode must be 'clips' or null, got {mode!r}")
    here = folder is not None and any((folder / file).is_file() for file in _HF_FILES)
    if not here and not hub:
        raise ValueError(
            f"text_cfg.hf_tokenizer_name is {name!r}, and there is no {_HF_FILES[0]} beside the weights; put "
            "that tokenizer's files there, as its save_pretrained writes them"
        )
    check(arguments, _HUGGING_FACE, "text_cfg.tokenizer_kwargs.")
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            f"text_cfg.hf_tokenizer_name is {name!r}, which needs the package transformers; install it "
            "(pip install transformers)"
        )
    try:
        # Code that a tokenizer brings along is not run: transformers would ask the terminal, so it is told.
        return HFTokenizer(
            str(folder) if here else name,
            context_length=text_cfg.get("context_length", 77),
            tokenizer_mode=mode,
            trust_remote_code=False,
            **arguments,
        )
    # transformers and the hub have errors of many types, of which they document few.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the Hugging Face tokenizer {name!r} cannot be made: {reason}") from error


def _find_vocabulary(name: str, folder: Path | None) -> Path:
    """The file of a byte-pair vocabulary, in ``folder`` itself or bundled."""
    for place in (folder, BUNDLED):
        if place is None or not (candidate := place / name).is_file():
            continue
        # A link is followed by whoever opens it: where it leads must lie here as well.
        if candidate.resolve().parent != place.resolve():
            raise ValueError(
                f"vocabulary file {candidate} leads out of its folder; put the file itself there"
            )
        _check_vocabulary(candidate)
        return candidate
    raise ValueError(f"vocabulary file {name!r} was found neither in {folder} nor among the bundled ones")


def _check_vocabulary(path: Path) -> None:
    try:
        with gzip.open(path) as file:
            # One byte over the limit shows that there is more, and the rest is never unpacked.
            content = file.read(MAX_VOCABULARY + 1)
        content.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"vocabulary file {path} is not gzip-compressed UTF-8 text: {error}") from None
    if len(content) > MAX_VOCABULARY:
        raise ValueError(f"vocabulary file {path} unpacks to more than {MAX_VOCABULARY:,} bytes")
