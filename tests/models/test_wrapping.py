from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import riemann_unlearn as ru
from riemann_unlearn import models
from riemann_unlearn.data import Dataset
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.models.checkpoint import check_saveable
from tests.conftest import make_model


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def features(model: DualEncoder) -> torch.Tensor:
    with torch.no_grad():
        tokens = model.tokenize(["red apple", "owl"])
        pixels = model.preprocess(torch.arange(2 * 3 * 256).view(2, 3, 16, 16).byte())
        return torch.cat([model.encode_image(pixels), model.encode_text(tokens)])


def test_the_model_is_found_inside_what_is_around_it(model: DualEncoder) -> None:
    for wrapped in (
        model,
        nn.DataParallel(model),
        compiled(model),
        compiled(nn.DataParallel(model)),
        nn.DataParallel(compiled(model)),
    ):
        assert models.unwrap(wrapped) is model
    with pytest.raises(TypeError, match=r"expected a model of this library .*, got Linear"):
        models.unwrap(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="got DataParallel"):
        models.unwrap(nn.DataParallel(nn.Linear(1, 1)))


def test_a_model_in_ddp_is_found_and_saved(meru: DualEncoder, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/join", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(meru)
        assert models.unwrap(wrapped) is meru
        models.save_model(wrapped, tmp_path / "model.safetensors")
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(features(models.load(tmp_path)), features(meru))


def test_a_compiled_tower_is_saved_by_its_own_names(model: DualEncoder, tmp_path: Path) -> None:
    models.save_model(model, tmp_path / "plain.safetensors")
    want = features(model)
    model.visual, model.text = compiled(model.visual), nn.DataParallel(model.text)
    model.text.module.transformer = compiled(model.text.module.transformer)
    assert torch.allclose(features(model), want)
    for name, wrapped in (("inside", model), ("both", nn.DataParallel(model)), ("compiled", compiled(model))):
        models.save_model(wrapped, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (tmp_path / "plain.safetensors").read_bytes(), name
    assert torch.equal(features(models.load(tmp_path / "inside")), want)


def test_a_part_that_is_called_module_keeps_its_name(meru: DualEncoder) -> None:
    meru.visual.module = nn.Linear(2, 2)
    assert "visual.module.weight" in models.state_of(meru)


def test_a_copy_of_a_compiled_model_is_a_model(model: DualEncoder, tmp_path: Path) -> None:
    want = features(model)
    model.visual = compiled(model.visual)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.allclose(features(other), want)
    models.save_model(other, tmp_path / "model.safetensors")
    assert torch.equal(features(models.load(tmp_path)), want)


def test_a_run_that_could_not_be_read_back_is_not_begun(
    meru: DualEncoder, world: Dataset, tmp_path: Path
) -> None:
    nn.utils.parametrizations.weight_norm(meru.visual.conv1)
    with pytest.raises(ValueError, match=r"cannot be saved: .* missing \['visual\.conv1\.weight'\]"):
        check_saveable(meru)
    with pytest.raises(ValueError, match=r"Take what was added to its layers off again"):
        ru.unlearn(meru, world, forget="food-fruit", output=tmp_path / "run", progress=False)
    assert not list(tmp_path.iterdir())
    nn.utils.parametrize.remove_parametrizations(meru.visual.conv1, "weight")
    models.save_model(meru, tmp_path / "m.safetensors")
    assert torch.allclose(features(models.load(tmp_path / "m.safetensors")), features(meru))


def test_tied_and_strided_weights_are_saved(tmp_path: Path) -> None:
    model = make_model("CLIP")
    blocks = model.visual.transformer.resblocks[0], model.text.transformer.resblocks[0]
    blocks[1].mlp.c_fc.weight = blocks[0].mlp.c_fc.weight  # tied
    model.visual.proj = nn.Parameter(torch.randn(16, 32).mT)  # columns first
    model.visual.ln_post.weight = nn.Parameter(torch.randn(64)[::2])  # part of a larger storage
    models.save_model(model, tmp_path / "model.safetensors")
    for name, value in models.load(tmp_path).state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize(
    "wrap", [lambda m: m, nn.DataParallel, compiled], ids=["plain", "parallel", "compiled"]
)
def test_each_module_is_in_its_own_mode_afterwards(model: DualEncoder, wrap: type) -> None:
    model.train()
    model.visual.eval()
    model.text.transformer.resblocks[0].attn.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    wrapped = wrap(model)
    with models.evaluating(wrapped):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == modes
    with pytest.raises(KeyError), models.evaluating(wrapped):
        raise KeyError
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_running_means_of_frozen_layers_stay() -> None:
    model = models.load("clip-emoji").train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    before = norms[0].running_mean.clone()
    pixels = model.preprocess(torch.zeros(2, 3, 56, 56))
    with models.evaluating(model):
        model.encode_image(pixels)
    model.encode_image(pixels)
    assert torch.equal(norms[0].running_mean, before)
