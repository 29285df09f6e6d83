from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import riemann_unlearn as ru
from riemann_unlearn.config import RunConfig
from riemann_unlearn.data import Dataset
from riemann_unlearn.models import DualEncoder, create_model, save_model
from riemann_unlearn.unlearning.moving import moving
from tests.models.test_families import TEXTS, config_of


def deep(architecture: str = "CLIP", **vision_cfg: Any) -> DualEncoder:
    """Three blocks an image tower, two a text tower."""
    config = config_of(architecture)
    config["model_cfg"]["vision_cfg"].update({"layers": 3, **vision_cfg})
    config["model_cfg"]["text_cfg"]["layers"] = 2
    torch.manual_seed(0)
    return create_model(config).eval()


def all_of(model: DualEncoder) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim > 0]


def names_of(model: DualEncoder, moved: list[nn.Parameter]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if any(parameter is p for p in moved)}


def moved_by(model: DualEncoder, train: str) -> set[str]:
    with moving(model, all_of(model), train) as moved:
        names = names_of(model, moved)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == names
    assert all(p.requires_grad for p in model.parameters())
    return names


def test_a_tower_moves_alone() -> None:
    model = deep()
    every = {name for name, p in model.named_parameters() if p.ndim}
    assert moved_by(model, "all") == every
    assert moved_by(model, "image") == {name for name in every if name.startswith("visual.")}
    assert moved_by(model, "text") == {name for name in every if name.startswith("text.")}


def test_the_last_blocks_move_and_what_comes_after_them() -> None:
    model = deep()
    last = moved_by(model, "last-1")
    after = {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"}
    after |= {"text.ln_final.weight", "text.ln_final.bias", "text.text_projection"}
    assert {name for name in last if "resblocks" not in name} == after
    assert {name.split(".resblocks.")[0] + name.split(".resblocks.")[1][:2] for name in last - after} == {
        "visual.transformer2.",
        "text.transformer1.",
    }
    both = moved_by(model, "last-2")
    assert any(name.startswith("visual.transformer.resblocks.1.") for name in both - last)
    assert not any(name.startswith("visual.transformer.resblocks.0.") for name in both)


@pytest.mark.parametrize(
    ("vision_cfg", "first", "stays"),
    [
        ({"layers": [1, 1, 1, 1], "width": 16, "image_size": 32}, "visual.layer4", "visual.layer3"),
        ({"timm_model_name": "test_resnet", "image_size": 32}, "visual.trunk.layer4", "visual.trunk.layer3"),
        (
            {"timm_model_name": "test_vit", "image_size": 160},
            "visual.trunk.blocks.5",
            "visual.trunk.blocks.4",
        ),
        (
            {"timm_model_name": "test_convnext", "image_size": 32},
            "visual.trunk.stages.3",
            "visual.trunk.stages.2",
        ),
    ],
)
def test_blocks_are_known_in_other_towers(vision_cfg: dict[str, Any], first: str, stays: str) -> None:
    names = moved_by(deep(**vision_cfg), "last-1")
    assert any(name.startswith(first) for name in names)
    assert not any(name.startswith(stays) for name in names)
    # the layer that projects comes last
    assert any(name.startswith(("visual.head.", "visual.attnpool.")) for name in names)


def test_what_cannot_be_chosen_is_refused() -> None:
    model = deep()
    with pytest.raises(ValueError, match="'last-4' asks for more than the 3 blocks of the image tower"):
        moved_by(model, "last-4")
    message = r"train='(text|lora:2)' leaves nothing to move of the \d+ tensors"
    with pytest.raises(ValueError, match=message), moving(model, list(model.visual.parameters()), "text"):
        pass
    projection: Any = model.visual.proj
    with pytest.raises(ValueError, match=message), moving(model, [projection], "lora:2"):
        pass
    model.visual.transformer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the image tower \(VisionTransformer\) has none of"):
        moved_by(model, "last-1")
    # of a tower that a method leaves alone nothing need be known
    with moving(model, list(model.text.parameters()), "last-1") as moved:
        assert moved


def test_a_correction_is_of_its_rank_and_ends_up_in_the_matrix() -> None:
    model = deep()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    tokens = model.tokenize(TEXTS)
    want = model.encode_text(tokens)
    with moving(model, all_of(model), "lora:2") as moved:
        assert torch.equal(model.encode_text(tokens), want)
        assert sum(p.numel() for p in moved) < sum(p.numel() for p in all_of(model)) / 10
        model.encode_text(tokens).square().sum().backward(inputs=moved)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in moved:
                parameter += torch.randn_like(parameter)
        changed = model.encode_text(tokens)
        assert not torch.allclose(changed, want, atol=1e-3)
    # the same tensors under the same names: optimizers and wrappers hold these
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert torch.equal(model.encode_text(tokens), changed)
    ranks = {
        name: int(torch.linalg.matrix_rank(value - before[name], atol=1e-3))
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert set(ranks.values()) == {2}
    assert "text.transformer.resblocks.0.attn.in_proj_weight" in ranks
    assert "visual.transformer.resblocks.2.mlp.c_fc.weight" in ranks


def test_what_needs_no_gradient_never_moves() -> None:
    model = deep(pos_embed_type="sin_cos_2d")
    with moving(model, all_of(model), "all") as moved:
        assert "visual.positional_embedding" not in names_of(model, moved)
    assert not model.visual.positional_embedding.requires_grad  # type: ignore[union-attr]


@pytest.mark.parametrize("train", ["all", "image", "text", "last-12", "lora:8"])
def test_the_option_takes_its_forms(train: str) -> None:
    assert RunConfig(forget="owl", train=train).train == train


@pytest.mark.parametrize(
    "train", ["last", "last-", "last-0", "last-N", "last--1", "lora:x", "lora:1.5", "both", ""]
)
def test_the_option_takes_no_other(train: str) -> None:
    with pytest.raises(ValueError, match="train must be one of all, image, text, last-N, lora:R, got"):
        RunConfig(forget="owl", train=train)


@pytest.mark.parametrize("train", ["last-1", "lora:2", "text"])
@pytest.mark.parametrize("method", ["finetune", "tilt"])
def test_a_run_moves_what_was_asked_for(world: Dataset, train: str, method: str) -> None:
    model = deep()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def run() -> Any:
        settings = {"steps": 2, "learning_rate": 1e-2}
        return ru.unlearn(
            model, world, forget="owl", method=method, train=train, settings=settings, progress=False
        )

    if (method, train) == ("tilt", "text"):  # it moves the image tower alone
        with pytest.raises(ValueError, match="leaves nothing to move"):
            run()
        return
    assert run().metrics["train"] == train
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    if train == "lora:2":
        assert all(before[name].ndim == 2 for name in moved)
    else:
        assert moved <= moved_by(model, train)


def test_a_resumed_run_with_corrections_ends_as_an_uninterrupted_one(world: Dataset, tmp_path: Path) -> None:
    class Stop(ru.training.Callback):
        def stepped(self, driver: Any, record: Any) -> None:
            if driver.step == 2:
                raise KeyboardInterrupt

    def run(name: str, **more: Any) -> DualEncoder:
        options: dict[str, Any] = {"settings": {"steps": 4}, "train": "lora:2", "progress": False, "seed": 1}
        save_model(deep(), tmp_path / "start.safetensors")
        start = tmp_path / "start.safetensors"
        result = ru.unlearn(
            start, world, forget="owl", method="finetune", output=tmp_path / name, **options, **more
        )
        return result.model

    want = run("whole").state_dict()
    with pytest.raises(KeyboardInterrupt, match="after 2 of 4 steps"):
        run("parts", callbacks=[Stop()])
    found = run("parts", resume=True).state_dict()
    assert all(torch.equal(value, want[name]) for name, value in found.items())
    assert found.keys() == want.keys()


def test_a_method_without_steps_has_nothing_to_choose(world: Dataset) -> None:
    with pytest.raises(ValueError, match="train='image' chooses among the weights that steps move"):
        ru.unlearn(deep(), world, forget="owl", method="nullspace", train="image", progress=False)
