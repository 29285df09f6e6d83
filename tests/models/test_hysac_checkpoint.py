"""A checkpoint with HySAC's names, from a model of open_clip: split where it splits, corrected as it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from riemann_unlearn import models
from tests.models.test_families import TEXTS

RANK = 4
VISION = {"layers": 2, "width": 64, "head_width": 64, "patch_size": 16, "image_size": 32}
TEXT = {"layers": 1, "width": 64, "heads": 1, "context_length": 16}


def original() -> open_clip.CLIP:
    """With OpenAI's activation, and biases that are not 0."""
    torch.manual_seed(0)
    model = open_clip.CLIP(24, dict(VISION), dict(TEXT), quick_gelu=True).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += torch.randn_like(parameter) / 20
    return model


def split(name: str, weight: Tensor) -> dict[str, Tensor]:
    """A matrix, or a convolution's kernel, as the sum of another one and a product of rank 4."""
    down = torch.randn(RANK, *weight.shape[1:])
    up = torch.randn(len(weight), RANK, *[1] * (weight.ndim - 2)) / 10
    product = (up.flatten(1) @ down.flatten(1)).view_as(weight) / RANK
    return {
        f"{name}.base_layer.weight": weight - product,
        f"{name}.lora_A.default.weight": down,
        f"{name}.lora_B.default.weight": up,
    }


def tower(theirs: str, blocks: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for i, block in enumerate(blocks):
        at = f"{theirs}.encoder.layers.{i}"
        weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        for which, weight, bias in zip("qkv", weights, biases, strict=True):
            name = f"{at}.self_attn.{which}_proj"
            # Queries have no correction.
            state |= {f"{name}.weight": weight} if which == "q" else split(name, weight)
            state[f"{name}.bias" if which == "q" else f"{name}.base_layer.bias"] = bias
        layers = (
            ("self_attn.out_proj", block.attn.out_proj),
            ("mlp.fc1", block.mlp.c_fc),
            ("mlp.fc2", block.mlp.c_proj),
        )
        for name, layer in layers:
            state |= {**split(f"{at}.{name}", layer.weight), f"{at}.{name}.base_layer.bias": layer.bias}
        for number, norm in ((1, block.ln_1), (2, block.ln_2)):
            state |= {
                f"{at}.layer_norm{number}.weight": norm.weight,
                f"{at}.layer_norm{number}.bias": norm.bias,
            }
    return state


def named_by_hysac(model: Any) -> dict[str, Tensor]:
    visual = model.visual
    seen, read = "visual.base_model.model", "textual.base_model.model"
    state = {
        **tower(f"{seen}.vision_model", visual.transformer.resblocks),
        **tower(f"{read}.text_model", model.transformer.resblocks),
        f"{seen}.vision_model.embeddings.class_embedding": visual.class_embedding,
        f"{seen}.vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        f"{seen}.vision_model.embeddings.position_ids": torch.arange(5)[None],
        **split(f"{seen}.vision_model.embeddings.patch_embedding", visual.conv1.weight),
        f"{seen}.visual_projection.weight": visual.proj.mT,
        f"{read}.text_model.embeddings.token_embedding.weight": model.token_embedding.weight,
        f"{read}.text_model.embeddings.position_embedding.weight": model.positional_embedding,
        f"{read}.text_projection.weight": model.text_projection.mT,
        "pixel_mean": torch.zeros(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        "logit_scale": torch.tensor(2.5),
        "curv": torch.tensor(0.4),
        "visual_alpha": torch.tensor(-1.3),
        "textual_alpha": torch.tensor(-1.7),
    }
    norms = (
        (f"{seen}.vision_model.pre_layrnorm", visual.ln_pre),
        (f"{seen}.vision_model.post_layernorm", visual.ln_post),
        (f"{read}.text_model.final_layer_norm", model.ln_final),
    )
    for name, norm in norms:
        state |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
    return {key: value.detach().clone() for key, value in state.items()}


@torch.no_grad()
def test_a_checkpoint_gives_the_features_of_its_clip_with_the_corrections(tmp_path: Path) -> None:
    clip = original()
    torch.save(named_by_hysac(clip), tmp_path / "hysac_model.pth")
    model: Any = models.load(tmp_path / "hysac_model.pth")
    assert model.name == "MERU"
    assert model.curvature.item() == pytest.approx(math.exp(0.4))
    assert model.mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    pixels, tokens = torch.rand(2, 3, 32, 32), model.tokenize(TEXTS)
    found = model(pixels, tokens)
    assert found["logit_scale"].item() == pytest.approx(math.exp(2.5))
    images, texts = clip.encode_image(pixels) * math.exp(-1.3), clip.encode_text(tokens) * math.exp(-1.7)
    torch.testing.assert_close(found["image_features"], images, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["text_features"], texts, rtol=0, atol=1e-5)


def test_what_a_checkpoint_lacks_or_has_too_much_is_named(tmp_path: Path) -> None:
    state = named_by_hysac(original())
    kernel = "visual.base_model.model.vision_model.embeddings.patch_embedding.base_layer.weight"
    for change, message in (
        (
            {kernel: None},
            r"those of HySAC, but it lacks visual\.vision_model\.embeddings\.patch_embedding\.weight",
        ),
        ({"head.weight": torch.zeros(2)}, r"unexpected \['head\.weight'\]"),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        torch.save(changed, tmp_path / "m.pth")
        with pytest.raises(ValueError, match=message):
            models.load(tmp_path / "m.pth")
