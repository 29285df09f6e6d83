from __future__ import annotations

import pytest
import torch

import riemann_unlearn as ru
from riemann_unlearn.data import Dataset
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.unlearning.saliency import saliency_masks


def test_the_largest_entries_of_all_are_chosen() -> None:
    gradients = [torch.tensor([[0.0, -5.0], [1.0, 2.0]]), None, torch.tensor([3.0, -0.5, 0.1, 0.2])]
    first, second, third = saliency_masks(gradients, 3 / 8)
    assert first is not None
    assert third is not None
    assert first.tolist() == [[False, True], [False, True]]
    assert second is None
    assert third.tolist() == [True, False, False, False]
    everything = saliency_masks(gradients, 1.0)
    assert all(mask is None or mask.all() for mask in everything)


def test_nothing_sensible_can_be_chosen() -> None:
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
        saliency_masks([torch.ones(2)], 0.0)
    with pytest.raises(ValueError, match="depends on none of the parameters"):
        saliency_masks([None], 0.5)


@pytest.mark.parametrize("method", ["tilt", "random-captions"])
def test_a_run_moves_only_the_salient_share(method: str, model: DualEncoder, world: Dataset) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ru.unlearn(
        model,
        world,
        forget="food-fruit",
        method=method,
        settings={"steps": 3},
        saliency=0.1,
        progress=False,
    )
    moved = {name: (p != before[name]).sum().item() for name, p in model.named_parameters()}
    candidates = [
        (name, p)
        for name, p in model.named_parameters()
        if p.ndim > 0 and (method != "tilt" or name.startswith("visual"))
    ]
    assert 0 < sum(moved.values()) <= 0.1 * sum(p.numel() for _, p in candidates) + 1


def test_a_share_outside_its_range_is_refused(meru: DualEncoder, world: Dataset) -> None:
    with pytest.raises(ValueError, match="saliency must be a number above 0, at most 1, got 0"):
        ru.unlearn(meru, world, forget="owl", saliency=0)
