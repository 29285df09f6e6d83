from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.constants import OPENAI_DATASET_MEAN
from safetensors.torch import save_file

from riemann_unlearn import models
from riemann_unlearn.models.configuration import complete
from tests.models.test_families import TEXTS, config_of
from tests.models.test_preprocess import as_tensor, picture

HF = "timm/ViT-B-16-SigLIP"


def open_clips(**model_cfg: Any) -> dict[str, Any]:
    """A configuration as open_clip writes it, with its own tokenizer and default mean and interpolation."""
    model_cfg = {**config_of("CLIP")["model_cfg"], **model_cfg}
    model_cfg["text_cfg"] = {**model_cfg["text_cfg"], "vocab_size": 49408}
    del model_cfg["text_cfg"]["tokenizer_kwargs"]
    return {"model_cfg": model_cfg, "preprocess_cfg": {"mode": "RGB", "size": 16, "resize_mode": "shortest"}}


def write(folder: Path, config: dict[str, Any], model: torch.nn.Module) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("bias", [None, -3.0])
def test_a_folder_of_open_clip_is_read_whole(
    tmp_path: Path, quick_gelu: bool, custom: bool, bias: float | None
) -> None:
    config = open_clips(quick_gelu=quick_gelu, custom_text=custom, init_logit_bias=bias)
    cfg = {key: value for key, value in config["model_cfg"].items() if key != "custom_text"}
    torch.manual_seed(0)
    theirs = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**cfg, output_dict=True).eval()
    write(tmp_path, config, theirs)
    model = models.load(tmp_path)
    assert model.name == ("CLIP" if bias is None else "SigLIP")
    pictures = [picture(20, 30), picture(31, 20), picture(16, 16)]
    raw = [as_tensor(image) for image in pictures]
    pixels, tokens = model.preprocess(raw), model.tokenize(TEXTS)
    assert torch.equal(tokens, open_clip.tokenize(TEXTS, context_length=16))
    transform = open_clip.image_transform(16, is_train=False)  # bicubic, the shorter side, OpenAI's mean
    by_open_clip = torch.stack([transform(image) for image in pictures])
    assert torch.equal(by_open_clip, pixels)
    out, want = model(pixels, tokens), theirs(pixels, tokens)
    assert set(out) == set(want)
    for key in want:
        assert torch.allclose(out[key], want[key], atol=1e-6), key
    # saved as ours, it is the same model
    models.save_model(model, tmp_path / "model.safetensors")
    (tmp_path / "open_clip_config.json").unlink()
    again = models.load(tmp_path)
    assert torch.equal(again.preprocess(raw), pixels)
    assert torch.equal(again(pixels, tokens)["image_features"], out["image_features"])


def test_quick_gelu_changes_the_output() -> None:
    outputs = []
    for quick_gelu in (False, True):
        torch.manual_seed(0)
        model = models.create_model(config_of("CLIP", quick_gelu=quick_gelu)).eval()
        outputs.append(model.encode_text(model.tokenize(TEXTS)))
    assert not torch.allclose(*outputs, atol=1e-4)


def test_open_clips_defaults_are_filled_in() -> None:
    config = complete(open_clips(init_logit_bias=-10, quick_gelu=None))
    assert config["architecture"] == "SigLIP"
    assert config["preprocess_cfg"] == {
        "mode": "RGB",
        "mean": OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
        "size": 16,
    }
    # ours stays as it is
    assert complete(config_of("MERU")) == config_of("MERU")


NAN, INFINITE = float("nan"), float("inf")
REFUSED: list[tuple[str, Any, str]] = [
    ("model_cfg.multimodal_cfg", {"layers": 1}, "'model_cfg.multimodal_cfg' is not understood here"),
    ("model_cfg.nonscalar_logit_scale", True, "'model_cfg.nonscalar_logit_scale' is not understood"),
    ("model_cfg.init_logit_bias", -10, "'model_cfg.init_logit_bias' is not understood"),
    ("model_cfg.embed_dim", 0, "model_cfg.embed_dim must be a positive integer, got 0"),
    ("model_cfg.embed_dim", -16, "got -16"),
    ("model_cfg.embed_dim", True, "got True"),
    ("model_cfg.embed_dim", 16.0, "got 16.0"),
    ("model_cfg.embed_dim", "16", "got '16'"),
    ("model_cfg.embed_dim", None, "got None"),
    ("model_cfg.quick_gelu", "yes", "quick_gelu must be one of True, False, got 'yes'"),
    ("model_cfg.quick_gelu", 1, "got 1"),
    ("model_cfg.init_logit_scale", NAN, "init_logit_scale must be a finite number, got nan"),
    ("model_cfg.vision_cfg", [], r"vision_cfg must be a mapping, got \[\]"),
    ("model_cfg.vision_cfg.layers", -1, r"layers must be a number, or four \(ResNet\), got -1"),
    ("model_cfg.vision_cfg.layers", [1, 1], r"got \[1, 1\]"),
    ("model_cfg.vision_cfg.width", {}, "width must be a positive integer, got {}"),
    (
        "model_cfg.vision_cfg.image_size",
        10**6,
        "a size in pixels up to 4096, or height and width, got 1000000",
    ),
    ("model_cfg.vision_cfg.mlp_ratio", INFINITE, "mlp_ratio must be a positive finite number"),
    ("model_cfg.vision_cfg.mlp_ratio", 10**400, "mlp_ratio must be a positive finite number"),
    ("model_cfg.vision_cfg.patch_dropout", 1.0, "from 0 to below 1"),
    ("model_cfg.vision_cfg.output_tokens", True, "false: a tower here gives one vector for each input"),
    ("model_cfg.vision_cfg.pool_type", "none", "pool_type must be one of 'tok', 'avg'"),
    ("model_cfg.vision_cfg.act_kwargs", {"a": 1}, "act_kwargs must be"),
    ("model_cfg.vision_cfg.norm_kwargs", {"device": "cuda"}, "norm_kwargs must be"),
    ("model_cfg.vision_cfg.norm_kwargs", {"eps": NAN}, "norm_kwargs must be"),
    ("model_cfg.vision_cfg.wdith", 3, "'vision_cfg.wdith' is not understood"),
    ("model_cfg.vision_cfg.timm_model_name", "hf-hub:timm/resnet18", "nothing is fetched"),
    ("model_cfg.vision_cfg.timm_model_name", "local-dir:/tmp", "nothing is fetched"),
    ("model_cfg.vision_cfg.timm_model_name", "no_such_model", "name of a model that timm has"),
    ("model_cfg.vision_cfg.timm_model_pretrained", True, "does not ask for downloads"),
    ("model_cfg.text_cfg.hf_model_name", 3, "hf_model_name must be the name of a model of transformers"),
    ("model_cfg.text_cfg.hf_pooler_type", "my_pooler", "hf_pooler_type must be one of 'mean_pooler'"),
    ("model_cfg.text_cfg.hf_config", {"model_type": "bert", "auto_map": {}}, "without code of its own"),
    (
        "model_cfg.text_cfg.hf_tokenizer_name",
        HF,
        f"hf_tokenizer_name is '{HF}', and there is no",
    ),
    ("model_cfg.text_cfg.tokenizer_mode", "clips", "tokenizer_mode is 'clips'"),
    ("model_cfg.text_cfg.tokenizer_kwargs", [1], "tokenizer_kwargs must be a mapping, got list"),
    (
        "model_cfg.text_cfg.tokenizer_kwargs",
        {"reduction_mask": "syntax"},
        "reduction_mask' is not understood",
    ),
    ("model_cfg.text_cfg.tokenizer_kwargs", {"clean": "none"}, "clean must be one of 'lower'"),
    (
        "model_cfg.text_cfg.tokenizer_kwargs",
        {"additional_special_tokens": ["(a+)+$"]},
        "additional_special_tokens must be a list of strings of letters",
    ),
    (
        "model_cfg.text_cfg.heads",
        3,
        "no towers can be built from this model_cfg: embed_dim must be divisible",
    ),
    ("preprocess_cfg", [], r"preprocess_cfg must be a mapping, or null, got \[\]"),
    ("preprocess_cfg", {"interpolation": "lanczos"}, "interpolation must be one of 'bilinear', 'bicubic'"),
    ("preprocess_cfg", {"resize_mode": "crop"}, "resize_mode must be one of 'squash', 'shortest', 'longest'"),
    ("preprocess_cfg", {"mode": "L"}, "mode must be 'RGB', got 'L'"),
    ("preprocess_cfg", {"size": 224}, "preprocess_cfg.size is 224 and vision_cfg.image_size is 16"),
    ("preprocess_cfg", {"mean": [0.5, 0.5]}, "mean must be three finite numbers"),
    ("preprocess_cfg", {"std": [0.5, 0.5, 0]}, "std must be three positive finite numbers"),
    ("preprocess_cfg", {"fill_color": 300}, "fill_color must be an integer from 0 to 255"),
    ("preprocess_cfg", {"crop_pct": 0.9}, "'preprocess_cfg.crop_pct' is not understood"),
    ("space", {"min_radius": 0.1}, "the space of CLIP takes no 'min_radius'"),
    ("space", 3, "space must be a mapping, or null, got 3"),
    ("architecture", ["CLIP"], "architecture must be the name of a model family"),
    ("tags", [], "'tags' is not understood"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_a_key_is_read_or_refused_by_name(key: str, value: Any, message: str) -> None:
    config = config_of("CLIP")
    *path, last = key.split(".")
    place = config
    for part in path:
        place = place[part]
    place[last] = value
    with pytest.raises(ValueError, match=message):
        models.create_model(config)


@pytest.mark.parametrize("value", [-1, 0, NAN, INFINITE, "1", True, None, [1.0]])
def test_a_curvature_is_a_positive_number(value: Any) -> None:
    with pytest.raises(ValueError, match="curvature_init must be a positive finite number, got "):
        models.create_model(config_of("MERU", curvature_init=value))


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"lacks 'model_cfg'; it has \['architecture'\]"):
        models.create_model({"architecture": "MERU"})
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        config = config_of("MERU")
        del config["model_cfg"][key]
        with pytest.raises(ValueError, match=f"lacks 'model_cfg.{key}'"):
            models.create_model(config)


def test_defaults_are_open_clips() -> None:
    config = config_of("CLIP")
    del config["model_cfg"]["vision_cfg"]["image_size"], config["model_cfg"]["text_cfg"]["context_length"]
    model = models.create_model(config)
    assert model.image_size == (224, 224)
    assert model.tokenize(["owl"]).shape == (1, 77)


KEYS: list[tuple[str, dict[str, Any]]] = [
    (
        "vision_cfg",
        {"ls_init_value": 0.1, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    ),
    ("vision_cfg", {"attentional_pool": True, "attn_pooler_queries": 3, "attn_pooler_heads": 2}),
    ("vision_cfg", {"pos_embed_type": "sin_cos_2d", "act_kwargs": {"approximate": "tanh"}, "mlp_ratio": 2.5}),
    ("vision_cfg", {"image_size": [16, 24], "patch_size": [8, 4], "norm_kwargs": {"eps": 1e-6}}),
    ("vision_cfg", {"layers": [1, 1, 1, 1], "width": 16, "image_size": 32, "head_width": 64}),
    ("vision_cfg", {"qk_norm": True, "scale_fc": True, "scale_heads": True, "block_type": "custom"}),
    (
        "vision_cfg",
        {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "mlp", "image_size": 160},
    ),
    ("vision_cfg", {"timm_model_name": "test_resnet.r160_in1k", "timm_drop": 0.1, "timm_drop_path": 0.1}),
    (
        "text_cfg",
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
    ),
    ("text_cfg", {"embed_cls": True, "pad_id": 0, "pool_type": "last"}),
    ("text_cfg", {"pool_type": "eos", "eos_id": 6869, "ls_init_value": None, "hf_model_name": None}),
    ("text_cfg", {"width": 16, "proj_type": "none"}),
]


@pytest.mark.parametrize(("tower", "keys"), KEYS, ids=lambda x: str(x)[:50])
def test_a_tower_with_each_key_is_open_clips_and_comes_back(
    tower: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of("CLIP")
    config["model_cfg"][tower].update(keys)
    cfg = copy.deepcopy(config["model_cfg"])
    torch.manual_seed(0)
    theirs = open_clip.CustomTextCLIP(**cfg).eval()
    torch.manual_seed(0)
    model = models.create_model(config).eval()
    pixels = torch.rand(2, 3, *model.image_size)
    tokens = model.tokenize(TEXTS)
    assert torch.allclose(model.encode_image(pixels), theirs.encode_image(pixels, normalize=True), atol=1e-5)
    assert torch.allclose(model.encode_text(tokens), theirs.encode_text(tokens, normalize=True), atol=1e-5)
    models.save_model(model, tmp_path / "model.safetensors")
    assert torch.allclose(models.load(tmp_path).encode_image(pixels), model.encode_image(pixels), atol=1e-6)


def test_every_key_of_open_clip_is_known_or_refused_on_purpose() -> None:
    """A key that a later open_clip adds is refused by name until someone has read what it does."""
    from dataclasses import fields

    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    from riemann_unlearn.models import configuration

    for cfg, rules in ((CLIPVisionCfg, configuration._VISION), (CLIPTextCfg, configuration._TEXT)):
        names = {field.name for field in fields(cfg)}
        assert set(rules) - {"hf_config"} == names
    assert timm.is_model("test_vit")


@pytest.mark.parametrize("text", [True, False])
def test_a_users_own_tokenizer_takes_any_model(text: bool) -> None:
    class Letters:
        vocab_size = 6870

        def __call__(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[ord(c) % 97 for c in f"{text:<16}"[:16]] for text in texts])

    cfg = config_of("SigLIP", init_logit_bias=-10)["model_cfg"]
    cfg["text_cfg"] |= {"hf_tokenizer_name": HF, "tokenizer_kwargs": {"clean": "canonicalize"}}
    model = models.SigLIP(cfg, Letters())
    assert model.encode_text(model.tokenize(["owl"])).shape == (1, 16)
