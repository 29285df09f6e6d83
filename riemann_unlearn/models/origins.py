"""What a model's name stands for: a file of weights, a configuration, and where the rest lies.

A name is a bundled model's, a file or a folder, ``open_clip:ARCHITECTURE/TAG`` (a tag of open_clip's list, or
a file of weights), or ``hf-hub:OWNER/NAME``. Only for the last two may the network be asked, and only for
what is not in the cache of this machine yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import open_clip
from open_clip import pretrained
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.transform import PreprocessCfg

from riemann_unlearn.models.tokenizers import BUNDLED
from riemann_unlearn.registry import did_you_mean

WEIGHTS_NAME = "model.safetensors"
"""What this library writes."""

OPEN_CLIP, HUB = "open_clip:", "hf-hub:"
_LOCAL = "local-dir:"
"""open_clip's word for a folder, which may be left out."""

_NAMES = (
    WEIGHTS_NAME,
    HF_SAFE_WEIGHTS_NAME,
    "open_clip_pytorch_model.safetensors",
    HF_WEIGHTS_NAME,
    "open_clip_pytorch_model.pth",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""What weights are called in a folder, ours first, then in open_clip's order."""
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class ModelInfo:
    """A bundled model: what ``ru.load`` takes, and what it is."""

    name: str
    architecture: str
    description: str

    @property
    def path(self) -> Path:
        """Folder of the weights, the configurations and the model card."""
        return BUNDLED / self.name


_MODELS = {
    info.name: info
    for info in (
        ModelInfo("meru-emoji", "MERU", "hyperbolic, its cones hold; Unicode emoji; convolutional, 56 px"),
        ModelInfo("clip-emoji", "CLIP", "Euclidean twin of meru-emoji: same towers, data and steps"),
        ModelInfo("meru-emoji-flat", "MERU", "what meru-emoji began with; its cones hold nothing"),
        ModelInfo("clip-emoji-flat", "CLIP", "what clip-emoji began with"),
    )
}


def list_models() -> list[ModelInfo]:
    """The bundled models.

    Examples
    --------
    >>> [info.name for info in list_models()]
    ['meru-emoji', 'clip-emoji', 'meru-emoji-flat', 'clip-emoji-flat']
    """
    return list(_MODELS.values())


def is_name(model: str) -> bool:
    """Whether a string names a model wherever it is said, and is no path that must be found from there.

    Examples
    --------
    >>> is_name("meru-emoji"), is_name("hf-hub:laion/some-model"), is_name("runs/mine")
    (True, True, False)
    """
    return model in _MODELS or model.startswith((OPEN_CLIP, HUB))


def lasting(model: str) -> str:
    """A model's name as it is; a path, also one behind open_clip's architecture, found from any folder.

    Examples
    --------
    >>> lasting("clip-emoji"), lasting("/models/mine"), lasting("open_clip:ViT-B-32/openai")
    ('clip-emoji', '/models/mine', 'open_clip:ViT-B-32/openai')
    """
    if is_name(model):
        head, _, file = model.partition("/")
        path = Path(file).expanduser()
        local = model.startswith(OPEN_CLIP) and bool(file) and path.is_file()
        return f"{head}/{path.resolve()}" if local else model
    return str(Path(model.removeprefix(_LOCAL)).expanduser().resolve())


@dataclass(frozen=True)
class Origin:
    """Where a model comes from."""

    weights: Path
    config: Mapping[str, Any] | None = None
    """open_clip's configuration, where it is not in the file itself or beside it."""
    hub: bool = False
    """Whether the model was asked for by its name on a hub, so that its tokenizer may be had from there."""

    @property
    def folder(self) -> Path:
        """Where its other files lie."""
        return self.weights.parent


def find(name_or_path: str | Path) -> Origin:
    """Where the model lies that is meant.

    Raises
    ------
    ValueError
        When there is none, with what there is.
    """
    name = str(name_or_path)
    # A bundled name comes first: what it means must not depend on the working directory.
    if name in _MODELS:
        return Origin(_MODELS[name].path / WEIGHTS_NAME)
    if name.startswith(OPEN_CLIP):
        return _of_open_clip(name.removeprefix(OPEN_CLIP))
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        about = read_config(_from_hub(repository, [HF_CONFIG_NAME]))
        return Origin(_from_hub(repository, [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]), about, hub=True)
    path = Path(name.removeprefix(_LOCAL)).expanduser()
    config: Mapping[str, Any] | None = None
    if path.suffix == ".json" and path.is_file():
        # A configuration stands for the weights beside it.
        path, config = path.parent, read_config(path)
    if path.is_file():
        return Origin(path, config)
    if (weights := _weights_in(path)) is not None:
        return Origin(weights, config)
    raise ValueError(
        f"no model {name!r}: it is neither a bundled model ({', '.join(_MODELS)}), nor a file, nor a folder "
        f"with {WEIGHTS_NAME} or {HF_SAFE_WEIGHTS_NAME}, nor {OPEN_CLIP}ARCHITECTURE/TAG or {HUB}OWNER/NAME"
    )


def configuration(name_or_path: str | Path) -> dict[str, Any]:
    """The configuration of a model that is to be made, without weights.

    Parameters
    ----------
    name_or_path : str or Path
        A bundled name, ``open_clip:ARCHITECTURE``, a configuration's file, or a folder with one.

    Raises
    ------
    ValueError
        When there is none.

    Examples
    --------
    >>> configuration("open_clip:ViT-B-32")["model_cfg"]["vision_cfg"]["patch_size"]
    32
    """
    name = str(name_or_path)
    if name.startswith(OPEN_CLIP):
        return {"model_cfg": _architecture(name.removeprefix(OPEN_CLIP))}
    path = _MODELS[name].path if name in _MODELS else Path(name.removeprefix(_LOCAL)).expanduser()
    path = path / HF_CONFIG_NAME if path.is_dir() else path
    if not path.exists():
        raise ValueError(
            f"no model {name!r}: expected one of {', '.join(_MODELS)}, {OPEN_CLIP}ARCHITECTURE, or the path "
            "of a JSON configuration or of a folder with one"
        )
    return read_config(path)


def read_config(path: Path) -> dict[str, Any]:
    """A configuration from a JSON file, open_clip's or ours; a bare ``model_cfg`` is one too.

    Raises
    ------
    ValueError
        When it is none.
    """
    try:
        return as_config(path.read_text(encoding="utf-8-sig"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the model configuration of {path} is not JSON: {error}") from None


def as_config(text: str, path: Path) -> dict[str, Any]:
    """The configuration in a text that was found in ``path``; see :func:`read_config`."""
    try:
        config = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the model configuration of {path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise ValueError(f"the model configuration of {path} is a {kind}, expected a mapping")
    return {"model_cfg": config} if "embed_dim" in config else config


def _of_open_clip(name: str) -> Origin:
    """``ARCHITECTURE/TAG``, or ``ARCHITECTURE/`` and a file of weights."""
    architecture, _, tag = name.partition("/")
    config = _architecture(architecture)
    full = {"model_cfg": config}
    about = pretrained.get_pretrained_cfg(architecture, tag)
    if not about:
        path = Path(tag).expanduser()
        if tag and path.is_file():
            return Origin(path, full, hub=True)
        known = pretrained.list_pretrained_tags_by_model(architecture)
        asked = f"{tag!r} is neither a tag of {architecture} nor a file" if tag else "it names no weights"
        raise ValueError(
            f"no model '{OPEN_CLIP}{name}': {asked}; write {OPEN_CLIP}{architecture}/ and then a file of "
            f"weights, or one of: {', '.join(known) or 'no tag is known'}"
        )
    if about.get("quick_gelu", False) != config.get("quick_gelu", False):
        # open_clip warns and goes on, with features that are not the trained ones.
        other = architecture.removesuffix("-quickgelu") + ("-quickgelu" if about.get("quick_gelu") else "")
        raise ValueError(
            f"the weights {tag!r} were trained with {'Quick' if about.get('quick_gelu') else ''}GELU and "
            f"{architecture} has the other; ask for {OPEN_CLIP}{other}/{tag}"
        )
    known_keys = PreprocessCfg.__dataclass_fields__.keys() - {"size"}
    full["preprocess_cfg"] = {key: about[key] for key in known_keys if key in about}
    repository = PurePosixPath(about.get("hf_hub") or "")
    if not repository.parts:
        return Origin(Path(_by_url(about, name)), full, hub=True)
    if about["hf_hub"].endswith("/"):
        files = [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    else:
        repository, file = repository.parent, repository
        files = [file.with_suffix(".safetensors").name, file.name]
    return Origin(_from_hub(str(repository), files), full, hub=True)


def _architecture(name: str) -> dict[str, Any]:
    """open_clip's ``model_cfg`` of a name; a copy, which the caller may change."""
    known = open_clip.list_models()
    if name not in known:
        raise ValueError(
            f"open_clip has no architecture {name!r}; {did_you_mean(name, known)}there are: "
            f"{', '.join(known)}"
        )
    found: dict[str, Any] = open_clip.get_model_config(name)
    return found


def _from_hub(repository: str, files: Sequence[str]) -> Path:
    """The first of the files that a repository of the hub has: from the cache, else by the network."""
    from huggingface_hub import hf_hub_download

    last: Exception | None = None
    for cached in (True, False):
        for file in files:
            try:
                return Path(hf_hub_download(repository, file, local_files_only=cached))
            # No such repository, no such file, no such cache, no network: the hub's client and the one that
            # it makes requests with each have types of their own for these.
            except Exception as error:
                last = error
    reason = str(last).strip().partition("\n")[0]
    raise ValueError(
        f"{' or '.join(files)} of {repository} on the Hugging Face hub is neither in this machine's cache "
        f"nor to be had from there ({reason}); fetch it where there is a network, and give its folder"
    )


def _by_url(about: Mapping[str, Any], name: str) -> str:
    try:
        return str(pretrained.download_pretrained_from_url(about["url"]))
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"the weights of {OPEN_CLIP}{name} cannot be had from {about.get('url')}: {error}"
        ) from None


def _weights_in(folder: Path) -> Path | None:
    """The file of weights in a folder: one of a known name, or the only one; None where there is none."""
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path for path in folder.glob("*") if path.suffix in _SUFFIXES and path.is_file())
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise ValueError(f"{folder} has several files of weights ({names}); name the one that is meant")
    return others[0] if others else None
