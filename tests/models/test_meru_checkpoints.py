"""Checkpoints with the names and structure of MERU's and HyCoCLIP's, made small, against their formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from riemann_unlearn import models
from riemann_unlearn.geometry import expmap0
from tests.models.test_families import TEXTS
from tests.models.test_preprocess import as_tensor, picture

WIDTH, CONTEXT, MEAN, STD = 64, 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Original(nn.Module):
    """What their papers describe: timm's transformer, a causal text transformer, a projection for each."""

    def __init__(self, hyperbolic: bool) -> None:
        super().__init__()
        self.visual = VisionTransformer(
            img_size=32,
            patch_size=16,
            embed_dim=WIDTH,
            depth=2,
            num_heads=1,
            num_classes=0,
            norm_layer=nn.LayerNorm,
        )
        self.visual.pos_embed.data[:, 0] = 0
        self.textual = nn.Module()
        self.textual.token_embed = nn.Embedding(49408, WIDTH)
        self.textual.posit_embed = nn.Parameter(torch.randn(CONTEXT, WIDTH) / 10)
        block = nn.Module()
        block.attn = nn.MultiheadAttention(WIDTH, 1, batch_first=True)
        block.ln_1, block.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        block.mlp = nn.Sequential()
        block.mlp.add_module("c_fc", nn.Linear(WIDTH, 4 * WIDTH))
        block.mlp.add_module("gelu", nn.GELU())
        block.mlp.add_module("c_proj", nn.Linear(4 * WIDTH, WIDTH))
        self.textual.resblocks = nn.ModuleList([block])
        self.textual.ln_final = nn.LayerNorm(WIDTH)
        self.textual.register_buffer("attn_mask", torch.ones(CONTEXT, CONTEXT).triu(1).bool())
        self.visual_proj = nn.Linear(WIDTH, 24, bias=False)
        self.textual_proj = nn.Linear(WIDTH, 24, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("pixel_mean", torch.tensor(MEAN).view(-1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(STD).view(-1, 1, 1))
        if hyperbolic:
            self.curv = nn.Parameter(torch.tensor(0.4))
            self.visual_alpha = nn.Parameter(torch.tensor(-1.3))
            self.textual_alpha = nn.Parameter(torch.tensor(-1.7))
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.data += torch.randn_like(parameter) / 20

    def images(self, images: Tensor) -> Tensor:
        features: Tensor = self.visual_proj(self.visual((images - self.pixel_mean) / self.pixel_std))
        return features

    def texts(self, tokens: Tensor) -> Tensor:
        x = self.textual.token_embed(tokens) + self.textual.posit_embed  # type: ignore[operator]
        for block in self.textual.resblocks:  # type: ignore[union-attr]
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=self.textual.attn_mask)[0]
            x = x + block.mlp(block.ln_2(x))
        # a text ends with the largest token
        x = self.textual.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)]  # type: ignore[operator]
        features: Tensor = self.textual_proj(x)
        return features


def checkpoint(folder: Path, hyperbolic: bool = True, **change: Any) -> tuple[Path, Original]:
    torch.manual_seed(0)
    original = Original(hyperbolic).eval()
    state = {**original.state_dict(), **change}
    state = {key: value for key, value in state.items() if value is not None}
    torch.save({"model": state, "optimizer": {"state": {}}, "iteration": 7}, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth", original


@torch.no_grad()
@pytest.mark.parametrize("hyperbolic", [True, False])
def test_a_checkpoint_gives_the_features_of_its_formulas(tmp_path: Path, hyperbolic: bool) -> None:
    path, original = checkpoint(tmp_path, hyperbolic)
    model: Any = models.load(path)
    assert model.name == ("MERU" if hyperbolic else "CLIP")
    pixels = model.preprocess([as_tensor(picture(32, 32)), as_tensor(picture(50, 40))])
    raw = pixels * original.pixel_std + original.pixel_mean
    images, texts = original.images(raw), original.texts(model.tokenize(TEXTS))
    found = model(pixels, model.tokenize(TEXTS))
    assert found["logit_scale"].item() == pytest.approx(math.exp(2.5))
    if hyperbolic:
        assert model.curvature.item() == pytest.approx(math.exp(0.4))
        assert model.space.min_radius == 0.1
        images, texts = images * math.exp(-1.3), texts * math.exp(-1.7)
        points = expmap0(images, model.curvature)
        assert torch.allclose(model.lift(found["image_features"]), points, atol=1e-5)
    else:
        images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    torch.testing.assert_close(found["image_features"], images, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["text_features"], texts, rtol=0, atol=1e-5)
    # the shorter side, bicubic, of ImageNet's statistics
    assert model.config["preprocess_cfg"]["resize_mode"] == "shortest"
    assert model.mean.flatten().tolist() == pytest.approx(MEAN)
    # positions are fixed
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "visual.positional_embedding"
    ]
    models.save_model(model, tmp_path / "again.safetensors")
    again = models.load(tmp_path / "again.safetensors")
    assert torch.equal(again.encode_image(pixels), found["image_features"])


def test_a_small_tower_has_the_heads_of_moco(tmp_path: Path) -> None:
    from riemann_unlearn.models.layouts import meru

    state = checkpoint(tmp_path)[1].state_dict()
    wide = {key: value for key, value in state.items()}
    wide["visual.patch_embed.proj.weight"] = torch.zeros(384, 3, 16, 16)
    found = meru.translate(None, wide)
    assert found is not None
    assert found[0]["model_cfg"]["vision_cfg"]["head_width"] == 32


def test_what_a_checkpoint_lacks_or_has_too_much_is_named(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, **{"visual.pos_embed": None, "pixel_std": None})
    with pytest.raises(
        ValueError, match=r"those of MERU and HyCoCLIP, but it lacks pixel_std, visual.pos_embed"
    ):
        models.load(path)
    path, _ = checkpoint(tmp_path, **{"visual.blocks.0.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"unexpected \['visual.blocks.0.extra'\]"):
        models.load(path)
