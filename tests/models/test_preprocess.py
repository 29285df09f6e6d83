from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import riemann_unlearn as ru
from riemann_unlearn import models
from riemann_unlearn.models import DualEncoder
from tests.models.test_families import config_of, images

MODES = ["squash", "shortest", "longest"]


def model_with(size: Any = 16, **preprocess_cfg: Any) -> DualEncoder:
    config = config_of("CLIP")
    config["model_cfg"]["vision_cfg"]["image_size"] = size
    return models.create_model({**config, "preprocess_cfg": preprocess_cfg})


def picture(height: int, width: int) -> Image.Image:
    """Smooth, so that what two implementations round differently stays small."""
    y, x = np.mgrid[:height, :width] / 7
    channels = [128 + 120 * np.sin(x), 128 + 120 * np.cos(y + x), 20 + 5 * x]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(16, 16), (41, 23), (23, 41), (300, 20), (9, 5), (16, 90), (17, 200)])
def test_each_resize_mode_is_open_clips(mode: str, interpolation: str, shape: tuple[int, int]) -> None:
    cfg: dict[str, Any] = {
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        "resize_mode": mode,
        "interpolation": interpolation,
        "fill_color": 77,
    }
    image = picture(*shape)
    want = image_transform_v2(PreprocessCfg(size=16, **cfg), is_train=False)(image)
    result = model_with(**cfg).preprocess([as_tensor(image)])[0]
    assert torch.equal(result, want)
    # torch does not round to bytes after each axis
    fractions = model_with(**cfg).preprocess([as_tensor(image) / 255])[0]
    assert (fractions - want).abs().max() * 0.26 < 2.6 / 255


@pytest.mark.parametrize("mode", ["squash", "longest", "shortest"])
def test_targets_that_are_no_squares(mode: str) -> None:
    cfg = {"resize_mode": mode, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [1.0] * 3}
    for shape in ((40, 30), (30, 90), (8, 8)):
        image = picture(*shape)
        want = image_transform_v2(PreprocessCfg(size=(16, 24), **cfg), is_train=False)(image)
        result = model_with((16, 24), **cfg).preprocess([as_tensor(image)])[0]
        assert torch.equal(result, want), shape


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=4),
    mode=st.sampled_from(MODES),
)
def test_each_image_is_transformed_by_itself(shapes: list[tuple[int, int]], mode: str) -> None:
    model = model_with(resize_mode=mode)
    several = [torch.randint(0, 256, (3, h, w)).byte() for h, w in shapes]
    result = model.preprocess(several)
    assert result.shape == (len(shapes), 3, 16, 16)
    for image, row in zip(several, result, strict=True):
        assert torch.equal(model.preprocess(image[None])[0], row)


def test_without_a_mode_images_are_squashed_bilinearly() -> None:
    raw = images()
    plain, spelled = model_with(), model_with(resize_mode="squash", interpolation="bilinear")
    # a name asks for open_clip's rounding to bytes
    assert (plain.preprocess(raw) - spelled.preprocess(raw)).abs().max() < 2 * 1.1 / 255
    assert torch.equal(plain.preprocess(raw / 255), spelled.preprocess(raw / 255))
    scaled = torch.nn.functional.interpolate(raw / 255, (16, 16), mode="bilinear", antialias=True)
    assert torch.equal(plain.preprocess(raw), (scaled - 0.5) / 0.5)


def test_bytes_and_fractions_of_any_precision_are_the_same(model: DualEncoder) -> None:
    raw = images()
    want = model.preprocess(raw)
    assert want.shape == (4, 3, 16, 16)
    assert torch.allclose(want, model.preprocess(raw.float() / 255))
    double = model.preprocess(raw.double() / 255)
    assert double.dtype == torch.float32
    assert torch.allclose(want, double)
    white = model.preprocess(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8))
    assert torch.equal(white, torch.ones(1, 3, 16, 16))
    assert model.preprocess([]).shape == model.preprocess(raw[:0]).shape == (0, 3, 16, 16)


def test_a_number_stands_for_three_channels() -> None:
    raw = images()
    assert torch.equal(
        model_with(mean=0.4, std=0.3).preprocess(raw),
        model_with(mean=[0.4] * 3, std=[0.3] * 3).preprocess(raw),
    )


def test_what_are_no_images_is_refused(model: DualEncoder) -> None:
    with pytest.raises(
        TypeError, match=r"must be uint8 in \[0, 255\] or floating point in \[0, 1\], got torch.int64"
    ):
        model.preprocess(torch.zeros(1, 3, 16, 16, dtype=torch.int64))
    for shape in ((3, 16, 16), (2, 1, 16, 16), (2, 4, 16, 16)):
        with pytest.raises(ValueError, match=r"must have shape \(N, 3, H, W\)"):
            model.preprocess(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"list of \(3, H, W\); got \(1, 16, 16\)"):
        model.preprocess([torch.zeros(16, 16)])


def test_images_and_tokens_go_to_the_models_device(model: DualEncoder) -> None:
    moved = model.to("meta")
    assert moved.device.type == "meta"
    assert moved.preprocess(images()).is_meta
    assert moved.preprocess(list(images())).is_meta
    assert moved.tokenize(["owl"]).is_meta
    assert moved.encode_text(moved.tokenize(["owl"])).is_meta


def test_unlearning_and_training_show_images_as_evaluation_does(
    world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = config_of("CLIP")
    config["model_cfg"]["vision_cfg"] |= {"image_size": 8, "patch_size": 4}  # the world's images have 16
    model = models.create_model(config)
    callers = []

    def resize(self: DualEncoder, images: Any) -> torch.Tensor:
        callers.append(sys._getframe(1).f_code.co_name)
        return original(self, images)

    original = DualEncoder.resize
    monkeypatch.setattr(DualEncoder, "resize", resize)
    ru.unlearn(model, world, forget="owl", method="finetune", settings={"steps": 1}, progress=False)
    assert "_fitted" in callers
    callers.clear()
    settings = ru.training.TrainConfig(epochs=1, batch_size=8)
    ru.training.train(config, settings, tmp_path / "run", data=world, progress=False)
    assert "_fitted" in callers


def test_everything_works_where_the_default_dtype_is_float64(world: Any) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = models.create_model(config_of("MERU"))
        for method in ("tilt", "hac"):
            result = ru.unlearn(
                model, world, forget="owl", method=method, settings={"steps": 1}, progress=False
            )
            assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)
