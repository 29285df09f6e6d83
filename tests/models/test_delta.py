from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from riemann_unlearn.models import DualEncoder, apply_delta, save_delta, save_model
from riemann_unlearn.models.weights import read_weights
from tests.conftest import make_model

WIDE = "text.token_embedding.weight"  # (6870, 32)
SQUARE = "visual.transformer.resblocks.0.attn.out_proj.weight"  # (32, 32)


def pair() -> tuple[DualEncoder, DualEncoder]:
    """Twice the same model."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(make_model("CLIP"))
    return models[0], models[1]


def change(model: DualEncoder, **by: Tensor | float) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in by:
                value += by[name]


def low_rank(rank: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, rank) @ torch.randn(rank, columns) / 10


def test_what_differs_is_written_alone_and_put_on_again(tmp_path: Path) -> None:
    base, model = pair()
    change(model, **{"visual.proj": 0.1, "text.ln_final.bias": 1.0, SQUARE: torch.randn(32, 32)})
    save_delta(model, base, tmp_path / "delta.safetensors")
    written = {"visual.proj", "text.ln_final.bias", SQUARE}
    assert set(load_file(tmp_path / "delta.safetensors")) == written
    apply_delta(base, tmp_path / "delta.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(base.state_dict()[name], value), name


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_a_change_of_low_rank_is_two_narrow_matrices(tmp_path: Path, rank: int) -> None:
    base, model = pair()
    change(model, **{WIDE: low_rank(rank, 6870, 32)})
    save_delta(model, base, tmp_path / "delta.safetensors")
    found = load_file(tmp_path / "delta.safetensors")
    if rank == 12:  # 12 vectors span no more than 12, and 32 are too wide to be worth it
        assert set(found) == {WIDE}
    else:
        assert found[f"{WIDE}/up"].shape == (6870, rank)
        assert found[f"{WIDE}/down"].shape == (rank, 32)
    apply_delta(base, tmp_path / "delta.safetensors")
    want = model.state_dict()[WIDE]
    assert (base.state_dict()[WIDE] - want).norm() <= 3 * torch.finfo(torch.float32).eps * want.norm()


def test_nothing_that_differs_is_a_delta_too(tmp_path: Path) -> None:
    base, model = pair()
    save_delta(model, base, tmp_path / "delta.safetensors")
    assert load_file(tmp_path / "delta.safetensors") == {}
    apply_delta(base, tmp_path / "delta.safetensors")


def test_a_delta_goes_on_its_own_model_alone(tmp_path: Path) -> None:
    base, model = pair()
    change(model, **{"visual.proj": 0.1})
    path = tmp_path / "delta.safetensors"
    save_delta(model, base, path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="was taken from a model with other weights"):
        apply_delta(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    save_model(base, tmp_path / "whole.safetensors")
    with pytest.raises(
        ValueError, match=r"is no delta; expected a file of riemann_unlearn.models.save_delta"
    ):
        apply_delta(base, tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match="the models are of different kinds: image_log_scale is not in both"):
        save_delta(make_model("MERU"), base, path)
    with pytest.raises(ValueError, match="the models are of different kinds"):
        save_delta(base, make_model("MERU"), path)


def test_a_damaged_delta_is_refused(tmp_path: Path) -> None:
    base, model = pair()
    change(model, **{WIDE: low_rank(2, 6870, 32)})
    path = tmp_path / "delta.safetensors"
    save_delta(model, base, path)
    state, metadata = read_weights(path)
    up, down = state[f"{WIDE}/up"], state.pop(f"{WIDE}/down")
    for damaged in (
        {},
        {f"{WIDE}/down": down[:1].clone()},
        {f"{WIDE}/down": down[:, :3].clone()},
        {f"{WIDE}/down": down[0].clone()},
        {f"{WIDE}/down": down, f"{WIDE}/up": up[:5].clone()},
    ):
        save_file({**state, **damaged}, path, metadata)
        with pytest.raises(ValueError, match=f"is damaged: the factors of {WIDE} do not fit each other"):
            apply_delta(base, path)
    save_file({"nothing": torch.zeros(2)}, path, metadata)
    with pytest.raises(ValueError, match="nothing is not in both"):
        apply_delta(base, path)
