"""Text towers of Hugging Face's transformers, without its hub where their configuration is at hand.

open_clip names such a tower, and has its architecture looked up by the name. Here the architecture becomes
part of the configuration, so that a checkpoint is whole; nothing pretrained is fetched, for the weights are
the checkpoint's own.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CONFIG_NAME = "config.json"


def with_architecture(text_cfg: Mapping[str, Any], folder: Path | None, *, hub: bool) -> dict[str, Any]:
    """A ``text_cfg`` that says the architecture of the tower which it names; as it is where it names none.

    Parameters
    ----------
    text_cfg : mapping
    folder : Path, optional
        Where transformers' ``config.json`` is looked for first.
    hub : bool
        Whether it may be had from the hub; else only the cache of this machine is asked.

    Raises
    ------
    ValueError
        When the architecture cannot be had, or transformers is not installed.
    """
    name = text_cfg.get("hf_model_name")
    if name is None or "hf_config" in text_cfg:
        return dict(text_cfg)
    _need_transformers(name)
    from transformers import AutoConfig

    here = folder is not None and (folder / _CONFIG_NAME).is_file()
    try:
        # Code that a model brings along is not run: transformers would ask the terminal, so it is told.
        config = AutoConfig.from_pretrained(
            str(folder) if here else name, local_files_only=here or not hub, trust_remote_code=False
        )
    # transformers and the hub have errors of many types, of which they document few.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"text_cfg.hf_model_name is {name!r}, whose architecture is not at hand ({reason}); put its "
            f"{_CONFIG_NAME} beside the weights"
        ) from error
    return {**text_cfg, "hf_config": json.loads(config.to_json_string(use_diff=False))}


@contextmanager
def as_open_clip_wants_it(text_cfg: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The same for open_clip's constructor, which finds the architecture in a folder of the name's place."""
    if "hf_config" not in text_cfg:
        yield dict(text_cfg)
        return
    _need_transformers(text_cfg["hf_model_name"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _CONFIG_NAME).write_text(json.dumps(text_cfg["hf_config"]))
        rest = {key: value for key, value in text_cfg.items() if key != "hf_config"}
        yield {**rest, "hf_model_name": folder, "hf_model_pretrained": False}


def _need_transformers(name: str) -> None:
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            f"text_cfg.hf_model_name is {name!r}, which needs the package transformers; install it "
            "(pip install transformers)"
        )
