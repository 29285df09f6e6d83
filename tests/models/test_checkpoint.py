from __future__ import annotations

import contextlib
import copy
import gzip
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from riemann_unlearn import models
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.models.origins import WEIGHTS_NAME
from tests.conftest import make_model, model_config
from tests.models.test_families import config_of


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
    assert sum(path.stat().st_size for path in weights) < 40e6


def test_what_is_not_a_model_is_refused(tmp_path: Path, meru: DualEncoder) -> None:
    with pytest.raises(ValueError, match=r"no model 'meru': .*meru-emoji, clip-emoji, meru-emoji-flat"):
        models.load("meru")
    with pytest.raises(ValueError, match="no model"):
        models.load(tmp_path)
    path = tmp_path / WEIGHTS_NAME
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(
        ValueError, match=r"no model configuration in its metadata, nor open_clip_config\.json"
    ):
        models.load(tmp_path)
    for text in ("{", "[" * 100_000):
        save_file({"a": torch.zeros(1)}, path, {"config": text})
        with pytest.raises(ValueError, match=rf"the model configuration of {path} is not JSON"):
            models.load(tmp_path)
    save_file({"a": torch.zeros(1)}, path, {"config": "[]"})
    with pytest.raises(ValueError, match="is a list, expected a mapping"):
        models.load(tmp_path)


def whole(folder: Path, model: DualEncoder) -> bytes:
    models.save_model(model, folder / WEIGHTS_NAME)
    return (folder / WEIGHTS_NAME).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:200],
        lambda content: content[:-1],
        lambda content: content + b"0",
        lambda content: b"12345678 not tensors",
        lambda content: b"\xff" * 8 + content[8:],
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(
    tmp_path: Path, meru: DualEncoder, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(damage(whole(tmp_path, meru)))
    with pytest.raises(
        ValueError, match=rf"^{path} is not a readable safetensors file .* copy it, or .* again$"
    ):
        models.load(tmp_path)


def test_damage_of_a_bit_gives_no_other_error(tmp_path: Path, meru: DualEncoder) -> None:
    content = bytearray(whole(tmp_path, meru))
    generator = torch.Generator().manual_seed(0)
    length = 8 + int.from_bytes(content[:8], "little")
    for place in torch.randint(length, (60,), generator=generator).tolist():
        damaged = content.copy()
        damaged[place] ^= 1 << (place % 8)
        (tmp_path / WEIGHTS_NAME).write_bytes(damaged)
        with contextlib.suppress(ValueError):
            models.load(tmp_path)


def with_state(path: Path, model: DualEncoder, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()
    }
    change(state)
    save_file(state, path, {"config": json.dumps(model.config)})


NAME = "text.ln_final.weight"
STATES: list[tuple[Callable[[dict[str, torch.Tensor]], object], str]] = [
    (lambda s: s.pop(NAME), rf"missing \['{NAME}'\], unexpected \[\]"),
    (lambda s: s.update(extra=torch.zeros(1)), r"missing \[\], unexpected \['extra'\]"),
    (
        lambda s: s.update({NAME: torch.zeros(33)}),
        rf"{NAME} has shape \(33,\) and the configuration asks for \(32,\)",
    ),
    (
        lambda s: s.update({NAME: torch.zeros(32, dtype=torch.int64)}),
        f"{NAME} is stored as torch.int64, not as floating-point",
    ),
    (lambda s: s.update({NAME: torch.zeros(32).bool()}), f"{NAME} is stored as torch.bool"),
    (lambda s: s[NAME].fill_(float("nan")), f"{NAME} holds NaN or infinity; was it saved by a diverged run"),
    (lambda s: s[NAME][0].fill_(float("-inf")), f"{NAME} holds NaN or infinity"),
    (lambda s: s["log_curvature"].fill_(200.0), "its c is inf"),
    (lambda s: s["log_curvature"].fill_(-200.0), "its c is 0"),
    (lambda s: s["logit_scale"].fill_(200.0), "its logit_scale is inf"),
]


@pytest.mark.parametrize(("change", "message"), STATES, ids=lambda x: x[:30] if isinstance(x, str) else "")
def test_weights_fit_their_configuration(
    tmp_path: Path, meru: DualEncoder, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    path = tmp_path / WEIGHTS_NAME
    with_state(path, meru, change)
    with pytest.raises(ValueError, match=rf"{path} cannot be (loaded|used): .*{message}"):
        models.load(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_any_precision_become_float32(
    tmp_path: Path, meru: DualEncoder, dtype: torch.dtype
) -> None:
    with_state(tmp_path / "m", meru, lambda s: s.update({k: v.to(dtype) for k, v in s.items()}))
    torch.set_default_dtype(torch.float64)
    try:
        model = models.load(tmp_path / "m")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    want = meru.visual.conv1.weight.to(dtype).float()  # type: ignore[union-attr, operator]
    assert torch.equal(model.visual.conv1.weight, want)  # type: ignore[union-attr, arg-type]


def test_weights_that_a_dtype_cannot_hold_are_not_saved(tmp_path: Path, meru: DualEncoder) -> None:
    with torch.no_grad():
        meru.text.token_embedding.weight[3, 3] = 1e5  # type: ignore[union-attr, index, operator]
    with pytest.raises(ValueError, match=r"token_embedding.weight has values too large for torch.float16"):
        models.save_model(meru, tmp_path / "m", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"floating-point dtype, got torch.int8"):
        models.save_model(meru, tmp_path / "m", dtype=torch.int8)
    assert not list(tmp_path.iterdir())


HUGE: list[tuple[str, int | float, str]] = [
    ("vision_cfg.layers", 10**6, "vision_cfg.layers is 1000000 in the configuration"),
    ("text_cfg.layers", 10**6, "text_cfg.layers is 1000000"),
    ("text_cfg.width", 10**6, "text_cfg.width is 1000000"),
    ("text_cfg.heads", 10**9, "text_cfg.heads is 1000000000"),
    ("text_cfg.context_length", 10**9, "text_cfg.context_length is 1000000000"),
    ("text_cfg.vocab_size", 10**9, "text_cfg.vocab_size is 1000000000"),
    ("text_cfg.mlp_ratio", 1e12, "text_cfg.mlp_ratio is 1000000000000"),
    ("vision_cfg.mlp_ratio", 1e3, r"visual.transformer.resblocks.0.mlp.c_fc.\w+ has shape"),
    ("embed_dim", 10**7, "model_cfg.embed_dim is 10000000"),
    ("embed_dim", 6000, "has shape .* and the configuration asks for"),
    ("vision_cfg.image_size", 4096, "image_size over patch_size is 262144"),
    ("vision_cfg.patch_size", 4096, "has shape .* and the configuration asks for"),
    ("vision_cfg.layers", 2, r"missing \['visual.transformer.resblocks.1"),
]


@pytest.mark.parametrize(("key", "value", "message"), HUGE, ids=lambda x: str(x)[:30])
def test_nothing_is_built_that_the_weights_at_hand_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: float, message: str
) -> None:
    model = make_model("MERU")
    place: Any = model.config["model_cfg"]
    *path, last = key.split(".")
    for part in path:
        place = place[part]
    place[last] = value
    models.save_model(model, tmp_path / WEIGHTS_NAME)
    built = open_clip.CustomTextCLIP

    def towers(*arguments: Any, **options: Any) -> Any:
        result = built(*arguments, **options)
        assert all(parameter.is_meta for parameter in result.parameters())
        return result

    monkeypatch.setattr(open_clip, "CustomTextCLIP", towers)
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path)


def test_empty_tensors_do_not_vouch_for_sizes(tmp_path: Path) -> None:
    model = make_model("MERU")
    model.config["model_cfg"]["text_cfg"]["layers"] = 10**5
    names = {f"{i}": torch.zeros(0, 2) for i in range(10**4)} | {"wide": torch.zeros(0, 10**12)}
    with_state(tmp_path / "m", model, lambda s: s.update(names))
    with pytest.raises(ValueError, match=r"layers is 100000 .* needs more than the weights at hand"):
        models.load(tmp_path / "m")


def test_a_large_timm_model_is_not_built_for_small_weights(tmp_path: Path) -> None:
    model = make_model("CLIP")
    vision = {"timm_model_name": "vit_huge_patch14_224", "image_size": 224}
    model.config["model_cfg"]["vision_cfg"] = vision
    models.save_model(model, tmp_path / "m")
    with pytest.raises(ValueError, match=r"missing \['visual.head"):
        models.load(tmp_path / "m")


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "a/b.gz",
        "..\\b.gz",
        "C:b.gz",
        "",
        "a\0b",
        "é" * 200,
        3,
        None,
        ["a"],
    ],
)
def test_a_vocabulary_is_named_without_a_folder(tmp_path: Path, name: Any) -> None:
    config = config_of("CLIP")
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": name}
    with pytest.raises(ValueError, match="bpe_path must be the name of a file beside the checkpoint"):
        models.create_model(config, folder=tmp_path)


@pytest.mark.parametrize("name", ["none.gz", ".", "..", "\ud800"])
def test_a_vocabulary_that_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    config = config_of("CLIP")
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": name}
    for folder in (tmp_path, None):
        with pytest.raises(ValueError, match="was found neither in"):
            models.create_model(config, folder=folder)


VOCABULARY = Path(models.__file__).parent / "bundled" / "bpe_emoji.txt.gz"


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    config = config_of("CLIP")
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": "mine.gz"}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mine.gz").symlink_to(VOCABULARY)
    with pytest.raises(ValueError, match="leads out of its folder"):
        models.create_model(config, folder=folder)
    (folder / "mine.gz").unlink()
    (folder / "other.gz").write_bytes(VOCABULARY.read_bytes())
    (folder / "mine.gz").symlink_to("other.gz")
    (tmp_path / "link").symlink_to(folder)
    assert models.create_model(config, folder=tmp_path / "link").tokenizer.vocab_size == 6870


@pytest.mark.parametrize(
    "content", [b"", b"plain text", gzip.compress(b"\xff\xfe"), VOCABULARY.read_bytes()[:99]]
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.gz").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"mine.gz is not gzip-compressed UTF-8 text|the tokenizer has 514 tokens"
    ):
        models.create_model(with_own_vocabulary(), folder=tmp_path)


def test_a_vocabulary_that_unpacks_to_gigabytes_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riemann_unlearn.models.tokenizers.MAX_VOCABULARY", 1000)
    (tmp_path / "mine.gz").write_bytes(gzip.compress(b"0" * 1001))
    with pytest.raises(ValueError, match="unpacks to more than 1,000 bytes"):
        models.create_model(with_own_vocabulary(), folder=tmp_path)


def with_own_vocabulary() -> dict[str, Any]:
    config = config_of("CLIP")
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": "mine.gz"}
    return config


def test_a_vocabulary_of_ones_own_goes_with_the_model(tmp_path: Path) -> None:
    (tmp_path / "mine.gz").write_bytes(VOCABULARY.read_bytes())
    model = models.create_model(with_own_vocabulary(), folder=tmp_path)
    assert model.tokenizer.vocab_size == 6870
    folder = tmp_path / "run"
    folder.mkdir()
    for _ in range(2):
        models.save_model(copy.deepcopy(model), folder / WEIGHTS_NAME)
    assert models.load(folder).tokenize(["owl"]).equal(model.tokenize(["owl"]))
    (folder / "mine.gz").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"another vocabulary lies at .*mine.gz"):
        models.save_model(model, folder / WEIGHTS_NAME)


def test_loading_asks_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: DualEncoder) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    models.save_model(model, tmp_path / WEIGHTS_NAME)
    models.load(tmp_path)
    models.load("clip-emoji")
    for tower, key, value in (
        ("vision_cfg", "timm_model_name", "hf-hub:timm/resnet18.a1_in1k"),
        ("vision_cfg", "timm_model_name", "hf_hub:timm/resnet18.a1_in1k"),
        ("vision_cfg", "timm_model_pretrained", True),
        ("text_cfg", "hf_model_name", "bert-base-uncased"),
        ("text_cfg", "hf_tokenizer_name", "bert-base-uncased"),
    ):
        broken = copy.deepcopy(model)
        broken.config["model_cfg"][tower][key] = value
        models.save_model(broken, tmp_path / WEIGHTS_NAME)
        with pytest.raises(ValueError, match=f"{tmp_path}.* cannot be loaded: .*{key}"):
            models.load(tmp_path)


def test_loading_draws_no_more_numbers_than_the_model_takes(tmp_path: Path, model: DualEncoder) -> None:
    models.save_model(model, tmp_path / WEIGHTS_NAME)
    torch.manual_seed(1)
    models.create_model(model.config)
    want = torch.rand(3)
    torch.manual_seed(1)
    models.load(tmp_path)
    assert torch.equal(torch.rand(3), want)


def test_a_model_is_put_where_it_is_asked_for() -> None:
    assert models.load("clip-emoji", device="meta").device.type == "meta"
    assert models.load("clip-emoji", device=torch.device("cpu")).device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_the_gpu_gives_what_it_gives_on_the_cpu() -> None:
    here, there = models.load("meru-emoji"), models.load("meru-emoji", device="cuda")
    images = torch.randint(0, 256, (4, 3, 72, 56), generator=torch.Generator().manual_seed(0)).byte()
    for a, b in (
        (here.encode_image(here.preprocess(images)), there.encode_image(there.preprocess(images))),
        (here.encode_text(here.tokenize(["owl"])), there.encode_text(there.tokenize(["owl"]))),
    ):
        assert b.is_cuda
        assert torch.allclose(a, b.cpu(), atol=1e-3)
    assert there.space.ranks(b, b, torch.zeros(1, dtype=torch.int64, device="cuda")).tolist() == [0]


def test_clips_own_vocabulary_is_the_default() -> None:
    config = model_config("CLIP")
    text = config["model_cfg"]["text_cfg"]  # type: ignore[index]
    del text["tokenizer_kwargs"]
    text["vocab_size"] = 49408
    assert models.create_model(config).tokenizer.vocab_size == 49408
