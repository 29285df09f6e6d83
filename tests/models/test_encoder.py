from __future__ import annotations

import math

import pytest
import torch

from riemann_unlearn.geometry import tangent
from riemann_unlearn.models import CLIP, MERU, DualEncoder
from tests.conftest import make_model

TEXTS = ["red apple", "owl", "banana"]


def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 20, 20), generator=torch.Generator().manual_seed(0)).byte()


def test_the_output_is_open_clips_dictionary(model: DualEncoder) -> None:
    out = model(model.preprocess(images()[:3]), model.tokenize(TEXTS))
    assert out["image_features"].shape == out["text_features"].shape == (3, 16)
    assert out["logit_scale"].item() == pytest.approx(1 / 0.07)
    assert model.similarity(out["image_features"], out["text_features"]).shape == (3, 3)


def test_clip_compares_unit_vectors() -> None:
    model = make_model("CLIP")
    assert isinstance(model, CLIP)
    features = model.encode_text(model.tokenize(TEXTS))
    assert torch.allclose(features.norm(dim=-1), torch.ones(3))
    assert torch.allclose(model.similarity(features, features).diagonal(), torch.ones(3))
    assert model.curvature is None


def test_meru_compares_by_negative_distance_of_tangent_vectors(meru: MERU) -> None:
    v = meru.encode_text(meru.tokenize(TEXTS))
    i = meru.encode_image(meru.preprocess(images()))
    want = -tangent.dist(i[:, None], v[None], meru.curvature)
    assert torch.allclose(meru.similarity(i, v), want, atol=1e-4)
    assert meru.lift(v).shape == v.shape
    assert torch.allclose(torch.asinh(meru.lift(v).norm(dim=-1)), v.norm(dim=-1), atol=1e-6)


def test_meru_starts_near_the_origin_and_keeps_its_scalars_in_range(meru: MERU) -> None:
    assert meru.image_log_scale.exp().item() == pytest.approx(16**-0.5)
    with torch.no_grad():
        for scalar in (meru.logit_scale, meru.log_curvature, meru.image_log_scale, meru.text_log_scale):
            scalar.fill_(50.0)
    meru.clamp_()
    assert meru.logit_scale.exp().item() == pytest.approx(100)
    assert meru.curvature.item() == pytest.approx(10)
    assert meru.image_log_scale.item() == meru.text_log_scale.item() == 0.0
    with torch.no_grad():
        meru.log_curvature.fill_(-50.0)
    meru.clamp_()
    assert meru.curvature.item() == pytest.approx(0.1)


def test_the_towers_scalars_take_gradients(meru: MERU) -> None:
    out = meru(meru.preprocess(images()[:3]), meru.tokenize(TEXTS))
    meru.similarity(out["image_features"], out["text_features"]).sum().backward()
    for scalar in (meru.log_curvature, meru.image_log_scale, meru.text_log_scale):
        assert scalar.grad is not None
        assert scalar.grad.abs() > 0


def test_autocast_leaves_features_in_float32(model: DualEncoder) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(model.preprocess(images()[:3]), model.tokenize(TEXTS))
    assert out["image_features"].dtype == out["text_features"].dtype == torch.float32


def test_preprocessing_is_the_same_for_bytes_and_fractions(model: DualEncoder) -> None:
    raw = images()
    assert torch.allclose(model.preprocess(raw), model.preprocess(raw.float() / 255))
    assert model.preprocess(raw).shape == (4, 3, 16, 16)
    white = model.preprocess(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8))
    assert torch.equal(white, torch.ones(1, 3, 16, 16))


def test_a_configuration_that_does_not_fit_is_refused(meru: MERU) -> None:
    config = dict(meru.config["model_cfg"])
    with pytest.raises(ValueError, match="curvature_init must be positive, got -1"):
        MERU({**config, "curvature_init": -1}, meru.tokenizer)
    text = {**config["text_cfg"], "vocab_size": 100}
    with pytest.raises(ValueError, match="the tokenizer has 6870 tokens and the text tower expects 100"):
        CLIP({**config, "text_cfg": text}, meru.tokenizer)
    model = CLIP(config, meru.tokenizer)
    assert math.isclose(model.std[0].item(), 0.5)
