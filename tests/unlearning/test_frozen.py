from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from riemann_unlearn.data import Dataset
from riemann_unlearn.unlearning.frozen import FrozenCopy
from riemann_unlearn.unlearning.problem import ForgetAndRetain, Problem
from riemann_unlearn.unlearning.split import SplitTower
from tests.conftest import make_model


@pytest.mark.parametrize("cut", [False, True])
def test_it_gives_what_the_model_gave_before_it_moved(cut: bool, world: Dataset) -> None:
    model = make_model("MERU")
    problem = Problem(model, world, world.taxonomy.select(["food-fruit"]))
    moved = [model.visual.proj, *model.visual.ln_post.parameters()]
    if cut:
        images = model.preprocess(world.seen.images[torch.arange(7)])
        problem = replace(problem, split=SplitTower(model.visual, moved, images))
    plain, frozen = copy.deepcopy(model), FrozenCopy(problem)
    with torch.no_grad():
        for weight in moved:
            weight.add_(0.1)
    step = ForgetAndRetain(problem, 2, 3, seed=0).draw(0)
    found = frozen.image_features(step)
    assert not found.requires_grad
    torch.testing.assert_close(found, plain.encode_image(plain.preprocess(step.batch.images)))
    assert not torch.allclose(found, step.image_features)
    step.image_features.sum().backward()
    assert all(weight.grad is not None for weight in moved)
