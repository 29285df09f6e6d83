from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

import riemann_unlearn as ru
from riemann_unlearn.data import Concept, Dataset
from riemann_unlearn.evaluation import MEASURES, Measure, Subject, chance, evaluate, full_audit, list_measures
from riemann_unlearn.evaluation.measures.membership import Membership
from riemann_unlearn.evaluation.measures.recovery import Recovery
from riemann_unlearn.evaluation.measures.relearning import Relearning
from riemann_unlearn.models import DualEncoder
from tests.conftest import make_model
from tests.evaluation.worlds import Knows, dataset, noise

OWN = [
    "zero_shot",
    "over_unlearning",
    "retrieval",
    "paraphrase",
    "prototype",
    "recovery",
    "relearning",
    "membership",
    "alignment",
    "landing",
    "hierarchy",
]
OTHERS = {"on", "unmet", "chance", "seconds", "neighbours", "verdict"}
SHORT = [
    "zero_shot",
    "over_unlearning",
    "retrieval",
    "prototype",
    Recovery(draws=1),
    Relearning(steps=(1,), shots=(0, 1), rates=(1e-3,)),
    Membership(resamples=5),
    "alignment",
    "landing",
    "hierarchy",
]
"""Every measure that the world admits, those that take long with less of it."""


def other(model: DualEncoder) -> DualEncoder:
    """The model with moved weights."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            if parameter.ndim > 0:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return moved


@pytest.fixture(scope="module")
def report(world: Dataset) -> dict[str, Any]:
    before = make_model("MERU")
    models = {"oracle": other(other(before)), "after": other(before), "before": before}
    return full_audit(models, world, world.taxonomy.select(["food-fruit"]), measures=SHORT)


def test_the_measures_are_listed_in_the_order_of_their_tables() -> None:
    assert list_measures() == OWN
    assert set(MEASURES) == set(OWN)


def test_every_measure_of_every_model_is_there(report: dict[str, Any]) -> None:
    asked = [name for name in OWN if name != "paraphrase"]
    assert set(report) == {*asked, *OTHERS}
    assert set(report["seconds"]) == {*asked, "encode"}
    assert report["neighbours"] == ["drink"]
    assert report["unmet"] == {}
    for name in asked:
        assert list(report[name]) == ["before", "after", "oracle"]
        assert all(value is not None for value in report[name].values())
        assert "images" in report["on"][name]
    assert json.loads(json.dumps(report, allow_nan=False))["zero_shot"] == report["zero_shot"]


def test_rows_and_figures_are_made_of_what_a_file_gives_back(report: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    known = {name: MEASURES[name]() for name in OWN}  # type: ignore[operator]
    back = json.loads(json.dumps(report))
    drawn = set()
    for name, measure in known.items():
        if name not in back:
            continue
        columns = [measure.rows(value) for value in back[name].values()]
        assert all(isinstance(text, str) and text for column in columns for text in column.values())
        assert columns[1]
        figure = measure.figure(back[name])
        if figure is not None:
            assert isinstance(figure, Figure)
            figure.canvas.draw()
            drawn.add(name)
    assert drawn == {"recovery", "relearning", "alignment", "landing", "hierarchy"}


def test_a_measure_against_a_reference_is_only_made_against_another(report: dict[str, Any]) -> None:
    assert report["over_unlearning"]["before"] == 0.0
    assert report["over_unlearning"]["after"] > 0.0
    assert "gap" not in report["alignment"]["before"]
    assert "gap" in report["alignment"]["oracle"]
    assert "likelihood_ratio" not in report["membership"]["oracle"]
    assert "likelihood_ratio" in report["membership"]["before"]


def test_the_audit_repeats_itself_and_leaves_the_model_alone(world: Dataset, model: DualEncoder) -> None:
    weights = copy.deepcopy(model.state_dict())
    reports = []
    for _ in range(2):
        one = evaluate(model, world, forget="owl", audit="full", before=model, seed=3, measures=SHORT)
        del one["full_audit"]["seconds"]
        reports.append(one)
    assert reports[0] == reports[1]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    full = reports[0]["full_audit"]
    # The model against itself: nothing was lost.
    assert full["over_unlearning"]["after"] == 0.0
    assert full["alignment"]["after"]["forgetting_score"] == 0.0
    assert full["zero_shot"]["after"]["heldout"]["retain"] == reports[0]["heldout"]["retain"]
    assert full["prototype"]["after"] == reports[0]["audit"]["prototype"]
    assert (full["hierarchy"]["after"] is None) == (not model.space.has_cones)
    assert ("hierarchy" in reports[0]["unmet"]) == (not model.space.has_cones)


def test_without_held_out_images_each_measure_says_what_it_was_made_on_or_why_not(
    world: Dataset, meru: DualEncoder
) -> None:
    world = replace(world, heldout=None)
    got = evaluate(meru, world, forget="owl", audit="full", measures=SHORT)
    full = got["full_audit"]
    assert set(full["unmet"]) == {"over_unlearning", "prototype", "recovery", "relearning", "membership"}
    assert "its own shots" in full["unmet"]["relearning"]
    assert "before=" in full["unmet"]["over_unlearning"]
    assert got["unmet"] == {**full["unmet"], "paraphrase": "all concepts have the same keywords"}
    for name in full["unmet"]:
        assert full[name] == {"after": None}
        assert name not in full["on"]
    made = ["zero_shot", "retrieval", "alignment", "landing", "hierarchy"]
    assert full["on"] == dict.fromkeys(made, "seen images")
    assert list(full["zero_shot"]["after"]) == ["seen"]
    assert "heldout" not in got
    assert got["audit"] == {}


def test_one_level_has_no_parent_and_four_levels_are_all_told(meru: DualEncoder) -> None:
    names = ["owl", "duck", "rose", "tulip"]
    flat = dataset([Concept(n, n) for n in names])
    got = evaluate(Knows(flat), flat, forget="owl")
    assert got["forget"] == {
        "accuracy": 1.0,
        "recall_at_1": 1.0,
        "recall_at_5": 1.0,
        "parent_accuracy": None,
        "levels": {"name": {"accuracy": 1.0, "recall_at_5": 1.0, "images": 2, "ties": 0}},
        "images": 2,
    }
    assert got["neighbours"]["accuracy"] is None  # at one level there are none
    paths = [("raptor", "bird", "animal"), ("fowl", "bird", "animal"), ("rosales", "dicot", "plant")]
    paths.append(("lily-like", "monocot", "plant"))
    deep = dataset([Concept(n, n, ("thing", n), path) for n, path in zip(names, paths, strict=True)])
    got = evaluate(Knows(deep, "owl", "duck"), deep, forget="bird")
    assert {level: figures["accuracy"] for level, figures in got["forget"]["levels"].items()} == {
        "name": 0.5,
        "level 1": 0.5,
        "level 2": 1.0,
        "level 3": 1.0,
    }
    # Asked for at the third level: its own accuracy, and that of the fourth.
    assert (got["forget"]["accuracy"], got["forget"]["parent_accuracy"]) == (1.0, 1.0)
    got = evaluate(Knows(deep, "owl", "duck"), deep, forget=["owl", "plant"])
    assert got["forget"]["accuracy"] == got["forget"]["recall_at_1"]
    for data in (flat, deep):
        full = evaluate(meru, data, forget="owl", audit="full", before=meru, measures=SHORT)["full_audit"]
        assert full["unmet"] == {}
        assert set(full["hierarchy"]["after"]["radii"]) == {
            "image",
            *(lv.name for lv in data.taxonomy.levels),
        }


def test_free_captions_are_a_taxonomy_of_one_level(meru: DualEncoder) -> None:
    """Every image has a caption of its own, and nothing held out."""
    captions = [f"picture number {i} of a thing" for i in range(6)]
    data = dataset([Concept(str(i), text) for i, text in enumerate(captions)], each=1, heldout=False)
    got = evaluate(meru, data, forget=captions[:2], audit="full", measures=SHORT)
    assert got["forget"]["images"] == 2
    assert got["unmet"]["paraphrase"] == "the concepts have no keywords"
    assert got["full_audit"]["retrieval"]["after"]["forget"]["image_to_text_at_1"] is not None


def test_concepts_that_no_model_can_tell_apart_do_not_pass_for_forgotten() -> None:
    """Their names share the first sixteen tokens: they are not asked about, and that is said once."""
    data = dataset([Concept("1", "owl a"), Concept("2", "owl b"), Concept("3", "duck"), Concept("4", "rose")])

    class Truncates(Knows):
        def tokenize(self, texts: Any) -> torch.Tensor:
            return super().tokenize([text.replace("owl b", "owl a") for text in texts])

    with pytest.warns(UserWarning, match="2 captions read the same .*'owl a', 'owl b'") as warned:
        got = evaluate(Truncates(data), data, forget="owl a")
    assert len(warned) == 1
    assert got["forget"]["recall_at_1"] is None  # not 0: that would be forgetting
    assert got["forget"]["levels"]["name"]["images"] == 0
    assert got["forget"]["images"] == 2
    assert got["retain"]["recall_at_1"] == 1.0
    assert got["retain"]["levels"]["name"] == {"accuracy": 1.0, "recall_at_5": 1.0, "images": 4, "ties": 0}
    with pytest.warns(UserWarning, match="read the same"):
        full = full_audit(
            {"after": Truncates(data)},
            data,
            data.taxonomy.select(["owl a"]),
            measures=["retrieval", "relearning"],
        )
    assert "read the same" in full["unmet"]["relearning"]
    assert full["retrieval"]["after"]["forget"]["text_to_image_at_1"] is None


def test_a_collapsed_model_scores_zero_and_its_ties_are_told(world: Dataset, model: DualEncoder) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 0:
                parameter.zero_()
    got = evaluate(model, world, forget="owl")
    for group in ("forget", "retain"):
        for figures in got[group]["levels"].values():
            assert figures["accuracy"] == 0.0
            assert figures["ties"] == figures["images"] == got[group]["images"]


def test_each_level_sees_its_own_mistakes(world: Dataset) -> None:
    """An apple taken for a banana is the right subcategory; for an owl, nothing is right."""

    def told(taken_for: str, forget: str) -> dict[str, Any]:
        return evaluate(Knows(world, "red apple", taken_for), world, forget=forget)

    fruit = told("banana", "red apple")
    assert fruit["forget"]["recall_at_1"] == fruit["forget"]["accuracy"] == 0.0
    assert fruit["forget"]["parent_accuracy"] == 1.0
    for report in (fruit, told("owl", "red apple"), told("hot beverage", "red apple")):
        for part in (report, report["heldout"]):
            assert part["forget"]["recall_at_1"] == 0.0
            assert part["retain"]["accuracy"] == part["retain"]["parent_accuracy"] == 1.0
    by_level = told("hot beverage", "red apple")["forget"]["levels"]
    assert [by_level[name]["accuracy"] for name in ("name", "subcategory", "category")] == [0.0, 0.0, 1.0]
    # Of the whole subcategory, one in three is taken for something else of the same category.
    group = told("hot beverage", "food-fruit")["forget"]
    assert (group["accuracy"], group["parent_accuracy"]) == (2 / 3, 1.0)


def test_chance_has_the_form_of_the_metrics(world: Dataset) -> None:
    taxonomy = world.taxonomy
    guess = chance(taxonomy, taxonomy.select(["food-fruit"]))
    assert (guess["accuracy"], guess["recall_at_1"], guess["recall_at_5"]) == (1 / 4, 1 / 8, 5 / 8)
    assert guess["parent_accuracy"] == 1 / 2
    assert guess["levels"]["category"] == {"accuracy": 1 / 2, "recall_at_5": 1.0}
    assert (guess["paraphrase"], guess["prototype"]) == (1 / 8, 1 / 4)
    assert chance(taxonomy, taxonomy.select(["owl"]))["accuracy"] == 1 / 8


class Norms(Measure):
    """A third party's, as the documentation has it."""

    name = "norms"
    title = "Norms of the features"
    reading = "How long the image features are."

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> Any:
        return {"mean": subject.test.features.norm(dim=-1).pow(self.power).mean().item()}

    def rows(self, value: Any) -> dict[str, str]:
        return {"mean norm": f"{value['mean']:.3f}"}


@pytest.fixture
def norms() -> Iterator[None]:
    ru.register(Norms)
    yield
    del MEASURES._entries["norms"]


def test_a_third_partys_measure_is_registered_or_given(world: Dataset, norms: None) -> None:
    model = make_model("CLIP")
    assert list_measures()[-1] == "norms"
    for given in (["norms"], [Norms(2.0)], [Norms]):
        got = evaluate(model, world, forget="owl", audit="full", measures=given)["full_audit"]
        assert got["norms"]["after"]["mean"] == pytest.approx(1.0)
        assert got["on"] == {"norms": "held-out images"}
        assert Norms().figure(got["norms"]) is None
    quick = evaluate(model, world, forget="owl", measures=[Norms()])
    assert quick["audit"] == {"norms": {"mean": pytest.approx(1.0)}}


def test_what_cannot_be_asked_is_refused_at_once(
    world: Dataset, meru: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="audit must be 'quick' or 'full', got 'long'"):
        evaluate(meru, world, forget="owl", audit="long")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="belong to the full audit"):
        evaluate(meru, world, forget="owl", oracle=meru)
    with pytest.raises(ValueError, match="no measure 'hierarchi'; did you mean 'hierarchy'"):
        evaluate(meru, world, forget="owl", measures=["hierarchi"])
    with pytest.raises(TypeError, match=r"write \['hierarchy'\]"):
        evaluate(meru, world, forget="owl", measures="hierarchy")
    with pytest.raises(TypeError, match="a measure is a name or an instance of Measure, got 3"):
        evaluate(meru, world, forget="owl", measures=[3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected a model of this library"):
        evaluate(torch.nn.Linear(2, 2), world, forget="owl")

    class Taken(Norms):
        name = "seconds"

    with pytest.raises(ValueError, match="cannot be called 'seconds'"):
        evaluate(meru, world, forget="owl", measures=[Taken()])
    selection = world.taxonomy.select(["owl"])
    for models in ({"before": meru}, {"after": meru, "later": meru}):
        with pytest.raises(ValueError, match="models must be given by role"):
            full_audit(models, world, selection)
    with pytest.raises(ValueError, match="must share a kind of space"):
        full_audit({"after": meru, "oracle": make_model("CLIP")}, world, selection)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs sklearn, .*: pip install 'riemann-unlearn\[audit\]'"):
        evaluate(meru, world, forget="owl", audit="full")


def test_compiled_and_wrapped_models_are_evaluated(world: Dataset, model: DualEncoder) -> None:
    plain = evaluate(model, world, forget="owl")
    assert evaluate(torch.nn.DataParallel(model), world, forget="owl") == plain
    compiled = torch.compile(model, backend="eager")
    assert evaluate(compiled, world, forget="owl") == plain  # type: ignore[arg-type]
    model.visual = torch.compile(model.visual, backend="eager")  # type: ignore[assignment]
    assert evaluate(model, world, forget="owl") == plain
    got = full_audit(
        {"after": model},
        world,
        world.taxonomy.select(["owl"]),
        measures=[Relearning(steps=(1,), shots=(0, 1), rates=(1e-3,))],
    )
    assert got["unmet"] == {}


def test_the_default_dtype_does_not_matter(world: Dataset, model: DualEncoder) -> None:
    plain = evaluate(model, world, forget="owl", audit="full", before=model, measures=SHORT)
    torch.set_default_dtype(torch.float64)
    try:
        got = evaluate(model, world, forget="owl", audit="full", before=model, measures=SHORT)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {**got, "full_audit": None} == {**plain, "full_audit": None}
    assert got["full_audit"]["retrieval"] == plain["full_audit"]["retrieval"]


def test_the_model_is_moved_where_it_is_asked_to_be(world: Dataset, meru: DualEncoder) -> None:
    assert evaluate(meru, world, forget="owl", device="cpu") == evaluate(meru, world, forget="owl")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_everything_follows_the_model(world: Dataset, model: DualEncoder) -> None:
    here = evaluate(model, world, forget="food-fruit", audit="full", before=model, measures=SHORT)
    there = evaluate(
        model, world, forget="food-fruit", audit="full", before=model, measures=SHORT, device="cuda"
    )
    assert there["unmet"] == here["unmet"]
    assert there["forget"] == here["forget"]


def test_images_that_are_decoded_when_asked_for_are_as_good_as_a_tensor(meru: DualEncoder) -> None:
    """Images of several sizes come as a list."""
    data = dataset([Concept("1", "owl", ("bird",)), Concept("2", "duck"), Concept("3", "rose")])

    class Listed:
        def __init__(self, images: torch.Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, rows: torch.Tensor) -> list[torch.Tensor]:
            return list(self.images[rows])

    plain = evaluate(meru, data, forget="owl", audit="full", before=meru, measures=SHORT)
    listed = replace(
        data,
        seen=replace(data.seen, images=Listed(data.seen.images)),
        heldout=replace(noise(data.seen.concept, data.taxonomy, seed=1), images=Listed(data.heldout.images)),  # type: ignore[union-attr]
    )
    got = evaluate(meru, listed, forget="owl", audit="full", before=meru, measures=SHORT)
    del plain["full_audit"]["seconds"], got["full_audit"]["seconds"]
    assert got["full_audit"]["zero_shot"] == plain["full_audit"]["zero_shot"]
    assert set(got["full_audit"]) == set(plain["full_audit"])
