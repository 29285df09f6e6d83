"""Text towers and tokenizers of transformers, from files at hand; and what is said where they are not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import open_clip
import pytest
import torch

from riemann_unlearn import models
from riemann_unlearn.models.huggingface import as_open_clip_wants_it, with_architecture
from riemann_unlearn.models.layouts.open_clip import exported
from riemann_unlearn.models.origins import WEIGHTS_NAME
from riemann_unlearn.models.tokenizers import make_tokenizer
from tests.models.test_families import TEXTS, config_of
from tests.models.test_open_clip import VIT, features, saved

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"redapplowbn", "owl", "red", "##le", "app"]


@pytest.fixture
def bert(tmp_path: Path) -> dict[str, Any]:
    """A model_cfg whose text tower and tokenizer are a small BERT's, in a folder."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes)
    config.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    text = {"context_length": 12, "hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": "my/bert"}
    return {"embed_dim": 24, "vision_cfg": dict(VIT), "text_cfg": {**text, "hf_proj_type": "mlp"}}


def put_tokenizer(bert: dict[str, Any], folder: Path) -> None:
    for file in Path(bert["text_cfg"]["hf_model_name"]).glob("*tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
def test_a_text_tower_of_transformers_gives_what_it_gives_in_open_clip(
    bert: dict[str, Any], tmp_path: Path, pooler: str
) -> None:
    bert["text_cfg"]["hf_pooler_type"] = pooler
    theirs = saved(tmp_path / "theirs", bert)
    put_tokenizer(bert, tmp_path / "theirs")
    model = models.load(tmp_path / "theirs")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'theirs'}")(TEXTS)
    assert tokens.shape == (3, 12)
    assert torch.equal(model.tokenize(TEXTS), tokens)
    pixels = torch.rand(2, 3, 32, 32)
    wanted = features(theirs, pixels, tokens, normalize=True)[1]
    torch.testing.assert_close(features(model, pixels, tokens)[1], wanted, rtol=0, atol=2e-6)
    # What is saved is whole: neither the name's folder nor the hub is asked again.
    (tmp_path / "ours").mkdir()
    models.save_model(model, tmp_path / "ours" / WEIGHTS_NAME)
    again = open_clip.create_model(f"local-dir:{tmp_path / 'ours'}").eval()
    assert torch.equal(features(again, pixels, tokens, normalize=True)[1], features(model, pixels, tokens)[1])
    for file in Path(bert["text_cfg"]["hf_model_name"]).iterdir():
        file.unlink()
    ours = models.load(tmp_path / "ours")
    assert torch.equal(ours.encode_text(ours.tokenize(TEXTS)), model.encode_text(tokens))


def test_an_architecture_in_the_folder_goes_before_the_name(bert: dict[str, Any], tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs", bert)
    put_tokenizer(bert, tmp_path / "theirs")
    config = Path(bert["text_cfg"]["hf_model_name"]) / "config.json"
    config.rename(tmp_path / "theirs" / "config.json")
    model = models.load(tmp_path / "theirs")
    tokens = model.tokenize(TEXTS)
    assert torch.allclose(model.text(tokens), theirs.text(tokens), atol=1e-6)  # type: ignore[operator]
    (tmp_path / "theirs" / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"hf_model_name is .*, whose architecture is not at hand .* beside the weights"
    ):
        models.load(tmp_path / "theirs")


def test_an_architecture_larger_than_the_weights_is_not_built(bert: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path / "theirs", bert)
    put_tokenizer(bert, tmp_path / "theirs")
    model = models.load(tmp_path / "theirs")
    model.config["model_cfg"]["text_cfg"]["hf_config"]["num_hidden_layers"] = 10**6
    models.save_model(model, tmp_path / "theirs" / "m.safetensors")
    with pytest.raises(ValueError, match=r"text_cfg\.hf_config\.num_hidden_layers is 1000000"):
        models.load(tmp_path / "theirs" / "m.safetensors")


def test_a_broken_tokenizer_is_said(bert: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="the Hugging Face tokenizer 'my/bert' cannot be made"):
        make_tokenizer(bert["text_cfg"], tmp_path)


def test_without_transformers_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="hf_model_name is 'roberta-base', which needs the package transformers"
    ):
        with_architecture({"hf_model_name": "roberta-base"}, None, hub=False)
    cfg = {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}}
    with pytest.raises(ValueError, match=r"hf_tokenizer_name is .*, which needs the package transformers"):
        make_tokenizer(cfg, None, hub=True)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="needs the package transformers"):
        make_tokenizer(cfg, tmp_path)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            {"hf_tokenizer_name": "a/b", "tokenizer_mode": "words"},
            "tokenizer_mode must be 'clips' or null, got 'words'",
        ),
        (
            {"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"bpe_path": "a.gz"}},
            "bpe_path' is not understood",
        ),
        (
            {"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"language": "../x"}},
            "language must be a language's name",
        ),
    ],
)
def test_what_a_tokenizer_cannot_have_is_refused(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_tokenizer(cfg, None, hub=True)


class Lookup:
    """transformers' AutoConfig, for a machine whose cache has one model."""

    asked: ClassVar[list[tuple[str, bool]]]

    @classmethod
    def from_pretrained(cls, name: str, *, local_files_only: bool, trust_remote_code: bool) -> Lookup:
        assert not trust_remote_code
        cls.asked.append((name, local_files_only))
        if name == "not/there":
            raise OSError("it is not in\nthe cache")
        return cls()

    def to_json_string(self, use_diff: bool) -> str:
        assert not use_diff
        return '{"model_type": "bert", "num_hidden_layers": 1}'


def test_an_architecture_is_looked_up_once_and_then_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoConfig=Lookup))
    monkeypatch.setattr(Lookup, "asked", [], raising=False)
    given = {"hf_model_name": "a/b", "width": 3}
    found = with_architecture(given, tmp_path, hub=False)
    assert found == {**given, "hf_config": {"model_type": "bert", "num_hidden_layers": 1}}
    assert with_architecture(found, tmp_path, hub=True) == found
    with_architecture(given, tmp_path, hub=True)
    (tmp_path / "config.json").write_text("{}")
    with_architecture(given, tmp_path, hub=True)
    assert Lookup.asked == [("a/b", True), ("a/b", False), (str(tmp_path), True)]
    with pytest.raises(
        ValueError, match=r"whose architecture is not at hand \(it is not in the cache\); put its config"
    ):
        with_architecture({"hf_model_name": "not/there"}, None, hub=True)
    with as_open_clip_wants_it(found) as theirs:
        folder = Path(theirs["hf_model_name"])
        assert json.loads((folder / "config.json").read_text()) == found["hf_config"]
        assert theirs == {"width": 3, "hf_model_name": str(folder), "hf_model_pretrained": False}
    assert not folder.exists()
    config = {"architecture": "CLIP", "model_cfg": {"text_cfg": found}, "preprocess_cfg": {}}
    theirs = exported(config)
    assert theirs is not None
    assert theirs["model_cfg"]["text_cfg"] == given


def test_a_configuration_says_the_architecture_itself() -> None:
    given = {"hf_model_name": "roberta-base", "hf_config": {"model_type": "roberta"}}
    assert with_architecture(given, None, hub=False) == given
    assert json.loads(json.dumps(given)) == given


class Words:
    """open_clip's HFTokenizer, for a machine without transformers."""

    def __init__(self, name: str, **options: Any) -> None:
        if name == "not/there":
            raise OSError("it is not in\nthe cache")
        self.name, self.options = name, options

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text)] * self.options["context_length"] for text in texts])

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def test_a_tokenizer_is_asked_for_as_open_clip_asks_and_saved_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for place in ("tokenizers", "checkpoint"):
        monkeypatch.setattr(f"riemann_unlearn.models.{place}.HFTokenizer", Words)
    config = config_of("CLIP")
    text_cfg = config["model_cfg"]["text_cfg"]
    kwargs = {"clean": "canonicalize", "strip_sep_token": True}
    text_cfg |= {"hf_tokenizer_name": "a/b", "tokenizer_mode": "clips", "tokenizer_kwargs": kwargs}
    tokenizer, vocabulary = make_tokenizer(text_cfg, tmp_path, hub=True)
    assert (tokenizer.name, vocabulary) == ("a/b", None)
    asked = {"context_length": 16, "tokenizer_mode": "clips", "trust_remote_code": False}
    assert tokenizer.options == {**asked, **kwargs}
    with pytest.raises(ValueError, match="tokenizer 'not/there' cannot be made: it is not in the cache"):
        make_tokenizer({**text_cfg, "hf_tokenizer_name": "not/there"}, tmp_path, hub=True)
    (tmp_path / "tokenizer.json").write_text("{}")
    model = models.create_model(config, tmp_path)
    assert model.tokenizer.name == str(tmp_path)
    assert model.tokenize(["owl"]).tolist() == [[3] * 16]
    (tmp_path / "run").mkdir()
    models.save_model(model, tmp_path / "run" / WEIGHTS_NAME)
    assert models.load(tmp_path / "run").tokenizer.name == str(tmp_path / "run")
