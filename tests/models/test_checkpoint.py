from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from riemann_unlearn import models
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.models.checkpoint import WEIGHTS_NAME
from tests.conftest import model_config


def test_a_saved_model_comes_back_as_it_was(model: DualEncoder, tmp_path: Path) -> None:
    models.save_model(model, tmp_path / WEIGHTS_NAME)
    for source in (tmp_path, tmp_path / WEIGHTS_NAME, str(tmp_path)):
        again = models.load(source)
        assert type(again) is type(model)
        assert not again.training
        assert again.config == model.config
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name


def test_half_precision_keeps_vectors_and_scalars_exact(meru: DualEncoder, tmp_path: Path) -> None:
    with torch.no_grad():
        meru.log_curvature.fill_(0.123456789)  # type: ignore[union-attr, operator]
    models.save_model(meru, tmp_path / "m.safetensors", dtype=torch.float16)
    for name, value in load_file(tmp_path / "m.safetensors").items():
        assert value.dtype == (torch.float16 if value.ndim > 1 else torch.float32), name
    again = models.load(tmp_path / "m.safetensors")
    assert all(p.dtype == torch.float32 for p in again.parameters())
    assert torch.equal(again.curvature, meru.curvature)  # type: ignore[arg-type]


@pytest.mark.parametrize("info", models.list_models(), ids=lambda info: info.name)
def test_bundled_models_are_what_their_folder_says(info: models.ModelInfo) -> None:
    model = models.load(info.name)
    assert type(model).__name__ == info.architecture
    assert model.config == json.loads((info.path / "open_clip_config.json").read_text())
    assert {"train.yaml", "README.md"} <= {path.name for path in info.path.iterdir()}
    weights = [i.path / WEIGHTS_NAME for i in models.list_models()]
    assert sum(path.stat().st_size for path in weights) < 20e6


def test_what_is_not_a_model_is_refused(tmp_path: Path, meru: DualEncoder) -> None:
    with pytest.raises(ValueError, match=r"no model 'meru': .*meru-emoji, clip-emoji"):
        models.load("meru")
    with pytest.raises(ValueError, match="no model"):
        models.load(tmp_path)
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(b"12345678 not tensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        models.load(tmp_path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no model configuration in its metadata"):
        models.load(tmp_path)
    save_file({"a": torch.zeros(1)}, path, {"config": json.dumps(meru.config)})
    with pytest.raises(ValueError, match=r"does not fit its own configuration: missing .*unexpected \['a'\]"):
        models.load(tmp_path)


def test_a_configuration_is_checked(tmp_path: Path) -> None:
    config = model_config("MERU")
    with pytest.raises(ValueError, match="lacks 'model_cfg'; it has \\['architecture'\\]"):
        models.create_model({"architecture": "MERU"})
    with pytest.raises(ValueError, match="architecture 'BERT' is not one of CLIP, MERU"):
        models.create_model({**config, "architecture": "BERT"})
    text = config["model_cfg"]["text_cfg"]  # type: ignore[index]
    text["tokenizer_kwargs"] = {"bpe_path": "none.gz"}
    with pytest.raises(ValueError, match="was found neither in"):
        models.create_model(config, folder=tmp_path)


def test_a_vocabulary_beside_the_checkpoint_is_found(tmp_path: Path) -> None:
    bundled = Path(models.__file__).parent / "bundled" / "bpe_emoji.txt.gz"
    (tmp_path / "mine.gz").write_bytes(bundled.read_bytes())
    config = model_config("CLIP")
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": "mine.gz"}  # type: ignore[index]
    assert models.create_model(config, folder=tmp_path).tokenizer.vocab_size == 6870


def test_clips_own_vocabulary_is_the_default() -> None:
    config = model_config("CLIP")
    text = config["model_cfg"]["text_cfg"]  # type: ignore[index]
    del text["tokenizer_kwargs"]
    text["vocab_size"] = 49408
    assert models.create_model(config).tokenizer.vocab_size == 49408
