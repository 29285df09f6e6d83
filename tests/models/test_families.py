from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import geoopt
import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from riemann_unlearn import models, spaces
from riemann_unlearn.geometry import tangent
from riemann_unlearn.losses import AlignmentCalibration, ContrastiveLoss, EntailmentLoss
from riemann_unlearn.models import CLIP, FAMILIES, MERU, DualEncoder, SigLIP
from riemann_unlearn.registry import register
from tests.conftest import make_model, model_config

TEXTS = ["red apple", "owl", "banana"]


def images() -> Tensor:
    return torch.randint(0, 256, (4, 3, 20, 20), generator=torch.Generator().manual_seed(0)).byte()


def config_of(architecture: str, **model_cfg: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(model_config(architecture)))
    config["model_cfg"].update(model_cfg)
    return config


def output(model: DualEncoder) -> dict[str, Tensor]:
    result: dict[str, Tensor] = model(model.preprocess(images()[:3]), model.tokenize(TEXTS))
    return result


@pytest.fixture(params=["MERU", "CLIP", "SigLIP"])
def family(request: pytest.FixtureRequest) -> DualEncoder:
    return make_model(request.param)


def test_the_output_is_open_clips_dictionary(family: DualEncoder) -> None:
    out = output(family)
    own = {"MERU": {"c"}, "SigLIP": {"logit_bias"}, "CLIP": set()}[family.name]
    assert set(out) == {"image_features", "text_features", "logit_scale"} | own
    assert out["image_features"].shape == out["text_features"].shape == (3, 16)
    assert out["logit_scale"].item() == pytest.approx(10 if family.name == "SigLIP" else 1 / 0.07)
    assert family.space.pairwise(out["image_features"], out["text_features"]).shape == (3, 3)


def test_the_families_are_registered_and_make_their_own() -> None:
    assert {"CLIP", "MERU", "SigLIP"} <= set(FAMILIES)
    assert all(issubclass(FAMILIES[name], DualEncoder) for name in FAMILIES)
    with pytest.raises(ValueError, match=r"no architecture 'SigLP'; did you mean 'SigLIP'\?"):
        models.create_model(config_of("SigLP"))


def test_the_space_is_made_of_the_parameters_as_they_are(family: DualEncoder) -> None:
    kind = {"MERU": spaces.LorentzTangents, "CLIP": spaces.Cosine, "SigLIP": spaces.Sigmoid}[family.name]
    assert type(family.space) is kind
    with torch.no_grad():
        family.logit_scale.fill_(2.0)
    assert torch.equal(torch.as_tensor(family.space.scale), torch.tensor(2.0).exp())
    out = output(family)
    family.space.logits(out["image_features"], out["text_features"]).square().sum().backward()
    for name, parameter in family.named_parameters():
        if parameter.ndim == 0:
            assert parameter.grad is not None, name
            assert parameter.grad.abs() > 0, name


def test_clip_compares_unit_vectors() -> None:
    model = make_model("CLIP")
    features = model.encode_text(model.tokenize(TEXTS))
    assert torch.allclose(features.norm(dim=-1), torch.ones(3))
    assert torch.allclose(model.space.pairwise(features, features).diagonal(), torch.ones(3))


def test_meru_compares_by_negative_distance_of_tangent_vectors(meru: MERU) -> None:
    v = meru.encode_text(meru.tokenize(TEXTS))
    i = meru.encode_image(meru.preprocess(images()))
    want = -tangent.dist(i[:, None], v[None], meru.curvature)
    assert torch.allclose(meru.space.pairwise(i, v), want, atol=1e-4)
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


@settings(max_examples=5, deadline=None)
@given(min_radius=st.floats(0.01, 2.0), curvature=st.floats(0.1, 10.0))
def test_cones_have_the_k_of_the_configuration(
    tmp_path_factory: pytest.TempPathFactory, min_radius: float, curvature: float
) -> None:
    config = config_of("MERU", curvature_init=curvature) | {"space": {"min_radius": min_radius}}
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("k") / "model.safetensors"
    models.save_model(models.create_model(config), path)
    model = models.load(path)
    assert model.space.min_radius == min_radius
    broad, narrow = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).unbind()
    c = torch.tensor(curvature)
    want = tangent.exterior_angle(broad, narrow, c) - tangent.half_aperture(broad, c, min_radius)
    assert torch.allclose(model.space.cones(broad, narrow).outside.double(), want.double(), atol=1e-5)


def test_a_configuration_without_a_space_has_the_k_of_the_paper(meru: MERU) -> None:
    assert meru.config["space"] == {"min_radius": 0.1}
    assert meru.space.min_radius == 0.1
    with pytest.raises(ValueError, match=r"space\.min_radius must be a positive finite number, got 0"):
        models.create_model(config_of("MERU") | {"space": {"min_radius": 0}})
    with pytest.raises(ValueError, match="the space of CLIP takes no 'min_radius'"):
        models.create_model(config_of("CLIP") | {"space": {"min_radius": 0.1}})


def test_siglip_is_open_clips(meru: MERU) -> None:
    config = config_of("SigLIP", init_logit_bias=-7.5, init_logit_scale=2.0)["model_cfg"]
    model = models.create_model({"architecture": "SigLIP", "model_cfg": config}).eval()
    assert isinstance(model, SigLIP)
    theirs = open_clip.CustomTextCLIP(
        config["embed_dim"],
        config["vision_cfg"],
        {k: v for k, v in config["text_cfg"].items()},
        init_logit_bias=config["init_logit_bias"],
        init_logit_scale=config["init_logit_scale"],
        output_dict=True,
    ).eval()
    # open_clip's names are ours, so its weights fit.
    theirs.load_state_dict(model.state_dict())
    assert theirs.logit_scale.item() == 2.0
    pixels, tokens = model.preprocess(images()[:3]), model.tokenize(TEXTS)
    out, want = model(pixels, tokens), theirs(pixels, tokens)
    assert set(out) == set(want)
    for key in out:
        assert torch.allclose(out[key], want[key], atol=1e-6), key
    logits = model.space.logits(out["image_features"], out["text_features"])
    assert torch.allclose(logits, theirs.get_logits(pixels, tokens)[0], atol=1e-5)
    # and so are the losses
    mine = model.space.statistics(out["image_features"], out["text_features"])
    loss = ((mine.rows + mine.columns) / 2 - model.space.matched_logits(*list(out.values())[:2])).mean()
    assert torch.allclose(loss, open_clip.loss.SigLipLoss()(**want), atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda m: m, torch.nn.DataParallel], ids=["plain", "parallel"])
def test_losses_take_the_output_as_open_clips_training_loop_gives_it(
    family: DualEncoder, wrap: Callable[[DualEncoder], torch.nn.Module]
) -> None:
    out = wrap(family)(family.preprocess(images()[:3]), family.tokenize(TEXTS))
    terms = ContrastiveLoss()(**out, output_dict=True)
    assert set(terms) == {"contrastive_loss"}
    total = sum(terms.values())
    by_space = ContrastiveLoss()(out["image_features"], out["text_features"], space=family.space)
    assert torch.equal(total, by_space)
    total.backward()
    assert all(p.grad is not None for name, p in family.named_parameters() if p.ndim == 0)
    if family.space.has_cones:
        assert EntailmentLoss()(**out, output_dict=True)["entailment_loss"] >= 0
    else:
        with pytest.raises(ValueError, match="no entailment cones"):
            EntailmentLoss()(**out, output_dict=True)
    forget = torch.tensor([True, False, False])
    terms = AlignmentCalibration()(**output(family), forget_mask=forget, output_dict=True)
    assert all(value.isfinite() for value in terms.values())


@pytest.fixture
def spherical() -> Iterator[type[DualEncoder]]:
    @register
    class Spherical(DualEncoder):
        name = "Spherical"

        def encode_image(self, images: Tensor) -> Tensor:
            return F.normalize(self.visual(images).float(), dim=-1)

        def encode_text(self, tokens: Tensor) -> Tensor:
            return F.normalize(self.text(tokens).float(), dim=-1)

        @property
        def space(self) -> spaces.Space:
            return spaces.Cosine(scale=self.logit_scale.exp())

    yield Spherical
    del FAMILIES._entries["Spherical"]


def test_a_third_partys_family_is_one_class(spherical: type[DualEncoder], tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = models.create_model(config_of("Spherical")).eval()
    assert type(model) is spherical
    assert set(output(model)) == {"image_features", "text_features", "logit_scale"}
    models.save_model(model, tmp_path / "model.safetensors")
    assert type(models.load(tmp_path)) is spherical


def test_a_model_whose_space_its_scale_does_not_say_gives_the_space(meru: MERU) -> None:
    """A CLIP that compares in another way, and a MERU with another K: their losses would be others."""

    class Flat(CLIP):
        name = "Flat"

        @property
        def space(self) -> spaces.Space:  # type: ignore[override]
            return spaces.OnManifold(self.logit_scale.exp(), manifold=geoopt.Euclidean(ndim=1))

    wide = models.create_model({**config_of("MERU"), "space": {"min_radius": 0.4}}).eval()
    for model, loss in ((models.convert(meru, Flat), ContrastiveLoss()), (wide, EntailmentLoss())):
        out = output(model)
        assert {"logit_scale", "space"} < set(out)
        want = loss(out["image_features"], out["text_features"], space=model.space)
        assert torch.equal(loss(**out), want)
        assert all(type(value) is float for value in model.scalars().values())


@pytest.mark.parametrize("target", ["CLIP", "SigLIP", MERU])
def test_a_model_becomes_one_of_another_family_on_the_same_towers(
    family: DualEncoder, target: str | type[DualEncoder]
) -> None:
    own = family.config["model_cfg"] | {key: 1.5 for key in family.model_rules}
    model = type(family)(
        own, family.tokenizer, {"mean": [0.1] * 3}, {key: 0.3 for key in family.space_defaults}
    )
    result = models.convert(torch.nn.DataParallel(model).eval(), target)
    assert result.name == (target if isinstance(target, str) else target.name)
    assert not result.training
    assert result.config["preprocess_cfg"] == {"mean": [0.1] * 3}
    assert set(result.config["model_cfg"]) <= set(model_config("CLIP")["model_cfg"]) | set(result.model_rules)  # type: ignore[call-overload]
    for name, value in result.state_dict().items():
        if name.startswith(("visual.", "text.")):
            assert torch.equal(value, model.state_dict()[name])
    if result.name == model.name:
        assert result.config == model.config
    with torch.no_grad():
        next(result.parameters()).zero_()
    assert next(model.parameters()).any()


def test_autocast_leaves_features_in_float32(family: DualEncoder) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = output(family)
    assert out["image_features"].dtype == out["text_features"].dtype == torch.float32


def test_parameters_are_float32_whatever_the_default_dtype_is(family: DualEncoder) -> None:
    want = output(family)
    torch.set_default_dtype(torch.float64)
    try:
        other = models.create_model(family.config)
        assert {p.dtype for p in other.parameters()} == {torch.float32}
        other.load_state_dict(family.state_dict())
        out = output(other.eval())
        double = family.encode_image(family.preprocess(torch.rand(2, 3, 16, 16)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert double.dtype == torch.float32
    for key, value in want.items():
        assert out[key].dtype == torch.float32, key
        assert torch.equal(out[key], value), key


def test_the_configuration_is_the_models_own() -> None:
    config = config_of("MERU")
    before: Mapping[str, Any] = copy.deepcopy(config)
    model = models.create_model(config)
    config["model_cfg"]["vision_cfg"]["layers"] = 99
    assert model.config["model_cfg"] == before["model_cfg"]


def test_a_tokenizer_that_does_not_fit_is_refused(meru: MERU) -> None:
    config = dict(meru.config["model_cfg"])
    text = {**config["text_cfg"], "vocab_size": 100}
    with pytest.raises(ValueError, match="the tokenizer has 6870 tokens and the text tower expects 100"):
        CLIP({**config, "text_cfg": text}, meru.tokenizer)
    text = {**config["text_cfg"], "pool_type": "eos"}
    with pytest.raises(ValueError, match=r"eos_id is 2 and the tokenizer ends a text with 6869"):
        CLIP({**config, "text_cfg": text}, meru.tokenizer)
    CLIP({**config, "text_cfg": {**text, "eos_id": 6869}}, meru.tokenizer)


def test_a_map_of_image_features_is_folded_into_the_tower(family: DualEncoder) -> None:
    matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    pixels = family.preprocess(images())
    before = family.visual(pixels)
    family.transform_image_features_(matrix)
    assert torch.allclose(family.visual(pixels), before @ matrix.mT, atol=1e-4)
    family.visual = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 256, 16))
    before = family.visual(pixels)
    family.transform_image_features_(matrix)
    assert torch.allclose(family.visual(pixels), before @ matrix.mT, atol=1e-4)
    tower: Any = torch.nn.Sequential(*family.visual, torch.nn.LayerNorm(16))
    family.visual = tower
    weight = tower[1].weight.clone()
    with pytest.raises(ValueError, match="does not end in a linear layer to 16 features"):
        family.transform_image_features_(matrix)
    assert torch.equal(tower[1].weight, weight)
    family.visual = torch.nn.Identity()
    with pytest.raises(ValueError, match="does not end in a linear layer to 16 features"):
        family.transform_image_features_(matrix)


def spread(architecture: str) -> DualEncoder:
    """With features of some length: fresh towers of this size emit shorter ones than trained towers do."""
    model = make_model(architecture)
    with torch.no_grad():
        model.visual.proj.mul_(10)  # type: ignore[union-attr, operator]
        model.text.text_projection.mul_(10)  # type: ignore[union-attr, operator]
        model.logit_scale.fill_(3.0)
    return model


@pytest.mark.parametrize("architecture", ["CLIP", "SigLIP"])
@pytest.mark.parametrize("curvature", [1.0, 4.0])
def test_a_clip_is_lifted_with_its_directions_to_the_radii_that_are_asked_for(
    architecture: str, curvature: float
) -> None:
    clip = spread(architecture)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    lifted = MERU.from_clip(clip, images(), TEXTS, image_radius=0.5, text_radius=0.2, curvature=curvature)
    assert type(lifted) is MERU
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert lifted.curvature.item() == pytest.approx(curvature)
    assert lifted.logit_scale.item() == pytest.approx(3.0)
    pixels, tokens = clip.preprocess(images()), clip.tokenize(TEXTS)
    pairs = (
        (lifted.encode_image(pixels), clip.encode_image(pixels), 0.5),
        (lifted.encode_text(tokens), clip.encode_text(tokens), 0.2),
    )
    for tangents, directions, radius in pairs:
        assert tangents.norm(dim=-1).mean().item() * curvature**0.5 == pytest.approx(radius, rel=1e-4)
        assert torch.allclose(F.normalize(tangents, dim=-1), directions, atol=1e-5)
    # a third party's family below MERU is made too
    lifted.clamp_()
    assert lifted.image_log_scale.item() <= 0


def test_what_cannot_be_lifted_is_refused() -> None:
    clip = spread("CLIP")
    for arguments, options, message in (
        ((images(), []), {}, "needs images and texts"),
        (([], TEXTS), {}, "needs images and texts"),
        ((images(), TEXTS), {"text_radius": 0.0}, "text_radius must be a positive number, got 0.0"),
        ((images(), TEXTS), {"image_radius": float("nan")}, "image_radius must be a positive number"),
        ((images(), TEXTS), {"curvature": 11.0}, "curvature must be from 0.1 to 10, got 11.0"),
        (
            (images(), TEXTS),
            {"text_radius": 1e3},
            r"text features have a mean length of .* smaller text_radius",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            MERU.from_clip(clip, *arguments, **options)  # type: ignore[arg-type]
