"""Whoever draws views has images brought to the model's size by the model's own transform."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image

from riemann_unlearn import models
from riemann_unlearn.config import TrainConfig
from riemann_unlearn.data import Concept, Dataset, EncodedImages, Samples, Taxonomy
from riemann_unlearn.data.batch import Batch
from riemann_unlearn.training.train import EpochBatches
from riemann_unlearn.unlearning.problem import ForgetAndRetain, Problem
from tests.conftest import model_config


def banner() -> bytes:
    """Black in the middle third, white at the sides."""
    image = Image.new("RGB", (300, 100), "white")
    image.paste("black", (100, 0, 200, 100))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def banners() -> Dataset:
    taxonomy = Taxonomy([Concept("1", "owl"), Concept("2", "duck")])
    samples = Samples(
        EncodedImages([banner()] * 4), torch.tensor([0, 0, 1, 1]), torch.zeros(4).long(), ("x",), taxonomy
    )
    return Dataset("banners", samples, None)


def make(mode: str) -> models.DualEncoder:
    config = json.loads(json.dumps(model_config("CLIP")))
    config["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": mode}
    return models.create_model(config).eval()


def darkness(batch: Batch) -> float:
    """The share of black; of a banner cut to its middle it is all, but for the margin of a shifted view."""
    assert batch.images.shape == (4, 3, 16, 16)
    return float((batch.images.mean(1) < 0.5).float().mean())


def test_training_and_unlearning_see_what_evaluation_sees(banners: Dataset) -> None:
    shares = {}
    for mode in ("shortest", "squash"):
        model = make(mode)
        problem = Problem(model, banners, banners.taxonomy.select(["owl"]))
        drawers = [
            EpochBatches(banners.seen, model, TrainConfig(batch_size=4)),
            ForgetAndRetain(problem, 2, 2, 0),
        ]
        drawn = [drawer.draw(0) for drawer in drawers]
        batches = [step if isinstance(step, Batch) else step.batch for step in drawn]
        shares[mode] = [darkness(batch) for batch in batches]
    assert min(shares["shortest"]) > 0.7
    assert max(shares["squash"]) < 0.5
