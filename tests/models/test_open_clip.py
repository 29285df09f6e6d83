"""open_clip's own architectures, made small: their folders are read, and what is written is read there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from torch import Tensor, nn

from riemann_unlearn import models
from riemann_unlearn.cli import main
from riemann_unlearn.models.origins import WEIGHTS_NAME, configuration
from riemann_unlearn.models.weights import read_weights
from tests.models.test_families import TEXTS
from tests.models.test_preprocess import as_tensor, picture

VIT = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
TEXT = {"layers": 1, "width": 32, "heads": 2, "context_length": 16, "vocab_size": 49408}
TIMM = {"timm_model_name": "test_vit", "image_size": 160}
CONVOLUTIONS = {"timm_model_name": "test_resnet", "image_size": 64}

SMALL: dict[str, Mapping[str, Any]] = {
    "ViT-B-32": VIT,
    "ViT-B-32-quickgelu": VIT,
    "ViT-e-14": VIT,
    "ViT-M-16-alt": VIT,
    "ViT-L-14-CLIPA": VIT,
    "RN50": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64},
    "convnext_base": CONVOLUTIONS,
    "MobileCLIP-S1": CONVOLUTIONS,
    "EVA02-B-16": TIMM,
    "PE-Core-B-16": {**TIMM, "timm_model_name": "test_vit4", "timm_pool": "avg"},
    "ViTamin-S": CONVOLUTIONS,
    "ViT-B-16-SigLIP": TIMM | {"timm_pool": "avg", "timm_proj": "linear"},
    "ViT-B-16-SigLIP2": TIMM | {"timm_pool": "avg", "timm_proj": "linear"},
    "coca_ViT-B-32": {**VIT, "attn_pooler_heads": 2},
    "coca_base": VIT,
}
"""By architecture, what is made smaller in its image tower; what makes it this architecture stays."""

PREPROCESS = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "longest",
}


def small(architecture: str) -> dict[str, Any]:
    """open_clip's configuration with one layer a tower."""
    cfg: dict[str, Any] = open_clip.get_model_config(architecture)
    cfg["embed_dim"] = 24
    cfg["vision_cfg"].update(SMALL[architecture])
    cfg["text_cfg"].update(TEXT)
    # The names of Hugging Face's, whose files are not here; open_clip's own has the same size.
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        cfg["text_cfg"].pop(key, None)
    if "multimodal_cfg" in cfg:
        cfg["multimodal_cfg"].update({"layers": 1, "width": 24, "heads": 2, "context_length": 16})
    return cfg


def saved(folder: Path, cfg: dict[str, Any], **preprocess_cfg: Any) -> nn.Module:
    """The folder of such a model with random weights, and the model."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess_cfg})
    )
    torch.manual_seed(0)
    theirs: nn.Module = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            # Biases and layer scales start at 0 or nearly so, and would hide a name that is mixed up.
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) / 20)
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    return theirs


@torch.no_grad()
def features(model: Any, pixels: Tensor, tokens: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return model.encode_image(pixels, **options), model.encode_text(tokens, **options)


@pytest.mark.parametrize("architecture", SMALL)
def test_an_architecture_gives_what_it_gives_in_open_clip(architecture: str, tmp_path: Path) -> None:
    cfg = small(architecture)
    theirs = saved(tmp_path / "theirs", cfg, **PREPROCESS)
    model = models.load(tmp_path / "theirs")
    pictures = [picture(20, 30), picture(70, 20)]
    transform = image_transform_v2(PreprocessCfg(**theirs.visual.preprocess_cfg), is_train=False)  # type: ignore[union-attr, arg-type]
    pixels = model.preprocess([as_tensor(image) for image in pictures])
    assert torch.equal(pixels, torch.stack([transform(image) for image in pictures]))
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'theirs'}")(TEXTS)
    assert torch.equal(model.tokenize(TEXTS), tokens)
    # Of one memory layout, as a batch of theirs: convolutions sum in an order that depends on it.
    found, wanted = features(model, pixels, tokens), features(theirs, pixels, tokens, normalize=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    assert model.scalars()["logit_scale"] == pytest.approx(theirs.logit_scale.exp().item())  # type: ignore[operator, union-attr]
    assert ("logit_bias" in model.scalars()) == ("SigLIP" in architecture)

    (tmp_path / "ours").mkdir()
    models.save_model(model, tmp_path / "ours" / WEIGHTS_NAME)
    again = (
        open_clip.create_model(f"local-dir:{tmp_path / 'ours'}").eval().to(memory_format=torch.channels_last)
    )
    assert again.visual.preprocess_cfg == theirs.visual.preprocess_cfg  # type: ignore[union-attr]
    for a, b in zip(found, features(again, pixels, tokens, normalize=True), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(features(models.load(tmp_path / "ours"), pixels, tokens)[0], found[0])


def test_every_key_of_open_clips_architectures_is_read() -> None:
    from riemann_unlearn.models import FAMILIES, configuration

    for architecture in open_clip.list_models():
        config = configuration.complete({"model_cfg": open_clip.get_model_config(architecture)})
        configuration.check_model_cfg(config["model_cfg"], FAMILIES[config["architecture"]].model_rules)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("vit") / "ViT"
    return folder, saved(folder, small("ViT-B-32"))


def same(model: Any, theirs: nn.Module) -> bool:
    tokens = model.tokenize(TEXTS)
    return torch.equal(
        features(model, torch.zeros(1, 3, 32, 32), tokens)[1],
        features(theirs, torch.zeros(1, 3, 32, 32), tokens, normalize=True)[1],
    )


def test_a_folder_its_file_and_its_configuration_are_the_model(vit: tuple[Path, nn.Module]) -> None:
    folder, theirs = vit
    for name in (
        folder,
        folder / "open_clip_model.safetensors",
        folder / "open_clip_config.json",
        f"local-dir:{folder}",
    ):
        assert same(models.load(name), theirs)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "epoch_3.pt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_of_torch_is_read_as_data(
    vit: tuple[Path, nn.Module], tmp_path: Path, name: str, legacy: bool
) -> None:
    state: Any = {f"module.{key}": value.half() for key, value in vit[1].state_dict().items()}
    if name == "epoch_3.pt":  # as open_clip's training writes it
        state = {"epoch": 3, "name": "mine", "state_dict": state, "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "open_clip_config.json").write_text((vit[0] / "open_clip_config.json").read_text())
    model = models.load(tmp_path)
    assert torch.equal(model.visual.conv1.weight, vit[1].visual.conv1.weight.half().float())  # type: ignore[union-attr, operator, arg-type]
    # a bare model_cfg is a configuration too
    (tmp_path / "small.json").write_text(json.dumps(small("ViT-B-32")))
    assert models.load(tmp_path / "small.json").config == model.config


class Evil:
    def __reduce__(self) -> Any:
        return eval, ("1/0",)


def test_what_is_no_state_dict_is_refused(tmp_path: Path, vit: tuple[Path, nn.Module]) -> None:
    path = tmp_path / "m.pt"
    for content, message in (
        ({"a": Evil()}, "holds more than weights, and only weights are read"),
        ([1], "holds a list and no weights"),
        ({}, "holds a dict and no weights"),
        ({"a": 1}, "holds 'a', a int, among its weights"),
        ({"a": torch.zeros(1)}, r"no model configuration in its metadata, nor .* as in open_clip:ViT-B-32/"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            models.load(path)
    with pytest.raises(ValueError, match=r"none.pt cannot be read: No such file"):
        read_weights(tmp_path / "none.pt")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cannot be read as weights .* it is damaged"):
        models.load(path)


def test_a_bias_of_shape_one_is_a_scalar(tmp_path: Path) -> None:
    cfg = small("ViT-B-32") | {"init_logit_bias": -3, "nonscalar_logit_scale": True}
    theirs = saved(tmp_path / "theirs", cfg)
    assert theirs.logit_bias.shape == (1,)  # type: ignore[union-attr]
    model = models.load(tmp_path / "theirs")
    assert model.scalars()["logit_bias"] == pytest.approx(theirs.logit_bias.item())  # type: ignore[operator, union-attr]


def test_an_architecture_with_a_file_behind_it(
    vit: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Small", small("ViT-B-32"))
    name = f"open_clip:Small/{vit[0] / 'open_clip_model.safetensors'}"
    assert same(models.load(name), vit[1])
    from riemann_unlearn.models.origins import lasting

    monkeypatch.chdir(vit[0])
    assert lasting("open_clip:Small/open_clip_model.safetensors") == name
    assert lasting("open_clip_model.safetensors") == str(vit[0] / "open_clip_model.safetensors")


REFUSED = [
    ("open_clip:ViT-B-23/openai", r"no architecture 'ViT-B-23'; did you mean 'ViT-B-\d\d'\?"),
    ("open_clip:", "open_clip has no architecture ''"),
    ("open_clip:ViT-B-32", r"it names no weights; write open_clip:ViT-B-32/ .* one of: .*laion2b_s34b_b79k"),
    ("open_clip:ViT-B-32/laion", "'laion' is neither a tag of ViT-B-32 nor a file"),
    ("open_clip:ViT-B-32/openai", r"trained with QuickGELU .* ask for open_clip:ViT-B-32-quickgelu/openai"),
]


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_a_name_that_open_clip_does_not_have_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.load(name)


class Hub:
    """The hub, as a folder; ``online`` says whether what is not in the cache can be had."""

    def __init__(self, folder: Path, online: bool) -> None:
        self.folder, self.online, self.asked = folder, online, list[tuple[str, str, bool]]()

    def __call__(self, repository: str, file: str, *, local_files_only: bool) -> str:
        self.asked.append((repository, file, local_files_only))
        path = self.folder / file
        if not path.is_file() or (local_files_only and self.online):
            raise FileNotFoundError("not there")
        return str(path)


@pytest.mark.parametrize("online", [False, True])
def test_a_name_of_the_hub_is_its_files(
    vit: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch, online: bool
) -> None:
    hub = Hub(vit[0], online)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    assert same(models.load("hf-hub:someone/model"), vit[1])
    assert hub.asked[0] == ("someone/model", "open_clip_config.json", True)
    # what the cache has is not asked of the network
    assert all(cached for *_, cached in hub.asked) is not online


@pytest.mark.parametrize("place", ["someone/model/", "someone/model/open_clip_model.bin"])
def test_a_tag_of_open_clip_is_its_weights_and_its_transform(
    vit: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Small", small("ViT-B-32"))
    tags = {
        "mine": {
            "hf_hub": place,
            "mean": (0.1, 0.2, 0.3),
            "std": (1.0, 1.0, 1.0),
            "interpolation": "bilinear",
        }
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Small", tags)
    hub = Hub(vit[0], True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    model = models.load("open_clip:Small/mine")
    assert same(model, vit[1])
    assert {repository for repository, *_ in hub.asked} == {"someone/model"}
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.config["preprocess_cfg"]["interpolation"] == "bilinear"
    with pytest.raises(ValueError, match=r"'yours' is neither a tag of Small nor a file; .* one of: mine"):
        models.load("open_clip:Small/yours")


def test_a_tag_that_has_only_an_address(vit: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Small", small("ViT-B-32"))
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "Small", {"mine": {"url": "https://a.b/c.pt", "hf_hub": ""}}
    )
    monkeypatch.setattr(
        "open_clip.pretrained.download_pretrained_from_url",
        lambda url: str(vit[0] / "open_clip_model.safetensors"),
    )
    assert same(models.load("open_clip:Small/mine"), vit[1])

    def refuse(url: str) -> str:
        raise OSError("no route")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_url", refuse)
    with pytest.raises(ValueError, match=r"cannot be had from https://a.b/c.pt: no route"):
        models.load("open_clip:Small/mine")


def test_what_the_hub_does_not_give_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Hub(tmp_path, True))
    with pytest.raises(
        ValueError, match=r"open_clip_config.json of a/b on the Hugging Face hub is neither in this machine's"
    ):
        models.load("hf-hub:a/b")


def test_of_several_files_one_is_to_be_named(tmp_path: Path) -> None:
    for name in ("a.pt", "b.safetensors", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"several files of weights \(a.pt, b.safetensors\)"):
        models.load(tmp_path)


def test_a_configuration_is_had_without_weights(vit: tuple[Path, nn.Module], tmp_path: Path) -> None:
    cfg = open_clip.get_model_config("ViT-B-32")
    assert configuration("open_clip:ViT-B-32") == {"model_cfg": cfg}
    assert configuration(vit[0]) == configuration(vit[0] / "open_clip_config.json")
    assert configuration("meru-emoji")["architecture"] == "MERU"
    for name in (tmp_path, tmp_path / "none.json", "nothing"):
        with pytest.raises(
            ValueError,
            match=r"no model .*: expected one of meru-emoji, clip-emoji, .*, clip-emoji-flat, open_clip:",
        ):
            configuration(name)
    with pytest.raises(ValueError, match="no architecture 'ViT-B-32/openai'"):
        configuration("open_clip:ViT-B-32/openai")


def test_a_run_from_the_shell_takes_a_folder_and_leaves_one_that_open_clip_takes(
    vit: tuple[Path, nn.Module], world_path: Path, tmp_path: Path
) -> None:
    arguments = [
        "run",
        "--model",
        str(vit[0]),
        "--data",
        str(world_path),
        "--forget",
        "owl",
        "--method",
        "finetune",
    ]
    assert main([*arguments, "--train", "last-1", "--steps", "1", "--output", str(tmp_path / "run")]) == 0
    pixels, tokens = torch.rand(2, 3, 32, 32), open_clip.tokenize(TEXTS, context_length=16)
    ours = models.load(tmp_path / "run")
    again = (
        open_clip.create_model(f"local-dir:{tmp_path / 'run'}").eval().to(memory_format=torch.channels_last)
    )
    for a, b in zip(
        features(ours, pixels, tokens), features(again, pixels, tokens, normalize=True), strict=True
    ):
        assert torch.equal(a, b)
    assert not torch.equal(again.visual.proj, vit[1].visual.proj)  # type: ignore[arg-type, union-attr]
    assert torch.equal(again.visual.conv1.weight, vit[1].visual.conv1.weight)  # type: ignore[arg-type, operator, union-attr]
