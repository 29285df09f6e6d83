"""Single images to be forgotten, and what is said before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import riemann_unlearn as ru
from riemann_unlearn.data import Concept, Dataset, Samples, Taxonomy
from riemann_unlearn.evaluation.subject import encode
from riemann_unlearn.unlearning.checks import check_seen, warn_of_captions, warn_of_look_alikes
from riemann_unlearn.unlearning.problem import ForgetAndRetain, Problem
from tests.conftest import make_model

NAMES = ["owl", "duck", "cat", "fox"]


def noise(names: list[str] = NAMES, each: int = 4, seed: int = 0) -> Dataset:
    taxonomy = Taxonomy([Concept(name, name) for name in names])
    generator = torch.Generator().manual_seed(seed)

    def samples(count: int) -> Samples:
        concept = torch.arange(len(names)).repeat(count)
        images = torch.randint(256, (len(concept), 3, 16, 16), generator=generator, dtype=torch.uint8)
        return Samples(images, concept, torch.zeros_like(concept), ("noise",), taxonomy)

    ids = tuple(f"{part}/{i}" for part in "ab" for i in range(len(names) * each))
    return Dataset("noise", samples(each), samples(each), ids)


def test_single_images_are_drawn_and_masked_as_forgotten() -> None:
    data = noise()
    selection = data.select(["a/1", "a/5", "a/6"])
    problem = Problem(make_model("CLIP"), data, selection)
    step = ForgetAndRetain(problem, 8, 8, seed=0).draw(0)
    assert sorted(step.batch.indices[:3].tolist()) == [1, 5, 6]
    assert len(step.batch) == 11
    assert torch.equal(step.forget[0], torch.arange(11) < 3)
    # A retained duck is no negative of the forgotten one.
    assert step.caption_ids[0].tolist() == data.seen.concept[step.batch.indices].tolist()


def test_images_are_forgotten_and_their_caption_is_not() -> None:
    """A model is made to forget two of the ducks; evaluation says so by image."""
    data = noise()
    result = ru.unlearn(
        make_model("CLIP"), data, forget=["a/1", "a/5"], method="ac", settings={"steps": 3}, progress=False
    )
    after = result.metrics["after"]
    assert after["forget"]["images"] == 2
    assert after["neighbours"]["images"] == 2  # the other ducks
    assert after["retain"]["images"] == 14
    assert after["heldout"]["forget"]["images"] == 0
    report = ru.evaluate(result.model, data, forget=["a/1", "a/5"])
    assert report["forget"] == after["forget"]


def test_the_full_audit_knows_single_images() -> None:
    data = noise()
    subject = encode(make_model("CLIP"), data, data.select(["a/1", "b/2"]))
    assert subject.seen.forgotten.nonzero()[:, 0].tolist() == [1]
    assert subject.test.forgotten.nonzero()[:, 0].tolist() == [2]
    assert subject.neighbours.tolist() == [False, True, True, False]
    assert subject.seen.subset(torch.tensor([1, 2])).forgotten.tolist() == [True, False]


@pytest.mark.parametrize("method", ["tilt", "nullspace"])
def test_methods_that_forget_captions_say_so(method: str) -> None:
    with pytest.raises(
        ValueError, match=r"cannot be used: 2 images are to be forgotten whose captions other"
    ):
        ru.unlearn(make_model("CLIP"), noise(), forget=["a/1", "a/5"], method=method, progress=False)


def test_a_list_is_kept_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list").write_text("a/1\na/6\n")
    monkeypatch.chdir(tmp_path)
    result = ru.unlearn(
        make_model("CLIP"),
        noise(),
        forget="@list",
        method="ac",
        settings={"steps": 1},
        output=tmp_path / "run",
        progress=False,
    )
    assert result.metrics["forget"] == [f"@{tmp_path}/list"]


def test_what_no_seen_image_shows_is_refused() -> None:
    data = noise()
    with pytest.raises(ValueError, match="no seen image shows 'b/3'"):
        check_seen(data, ["a/1", "b/3"])
    check_seen(data, ["a/1"])


def test_retained_images_that_look_like_forgotten_ones_are_named() -> None:
    data = noise()
    images = torch.as_tensor(data.seen.images[torch.arange(16)]).clone()
    images[6] = images[1]
    twins = replace(data, seen=replace(data.seen, images=images))
    with pytest.warns(UserWarning, match=r"1 retained images look the same .*\('a/6' like 'a/1'\): what is"):
        warn_of_look_alikes(twins, twins.select(["duck"]))
    with pytest.warns(UserWarning, match="'a/1' like 'a/6'"):
        warn_of_look_alikes(twins, twins.select(["a/6"]))
    with pytest.warns(UserWarning, match="image 6 like image 1"):
        warn_of_look_alikes(replace(twins, ids=()), twins.select(["duck"]))
    warn_of_look_alikes(twins, twins.select(["duck", "a/6"]))  # warnings are errors here
    with pytest.warns(UserWarning, match="look the same"):
        ru.unlearn(
            make_model("CLIP"), twins, forget="duck", method="ac", settings={"steps": 1}, progress=False
        )


def test_captions_that_the_model_cannot_read_or_tell_apart_are_named() -> None:
    long = " ".join(["owl"] * 30)
    data = noise([f"{long} duck", f"{long} cat", "owl", "DUCK", "duck"])
    model = make_model("CLIP")
    with pytest.warns(UserWarning, match="captions|labels") as told:
        warn_of_captions(model, data, data.select(["DUCK"]))
    messages = [str(warning.message) for warning in told]
    assert len(messages) == 2
    assert messages[0].startswith("2 captions fill all of the 16 tokens that the model reads, or are longer")
    assert "'owl owl" in messages[0]
    assert "1 labels to be forgotten read the same to the model" in messages[1]
    assert "('DUCK' and 'duck')" in messages[1]
    short = noise()
    warn_of_captions(model, short, short.select(["owl"]))  # warnings are errors here
