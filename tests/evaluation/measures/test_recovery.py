from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from riemann_unlearn.evaluation.measures.recovery import Recovery
from riemann_unlearn.evaluation.subject import Subject
from tests.evaluation.worlds import subject, without_heldout


def clouds(concept: Tensor, centres: Tensor, seed: int, spread: float = 0.05) -> Tensor:
    noise = torch.randn(len(concept), centres.shape[1], generator=torch.Generator().manual_seed(seed))
    return normalize(centres[concept] + spread * noise, dim=-1)


def made(centres: Tensor, forget: list[str], spread: float = 0.05) -> Subject:
    seen, heldout = torch.arange(5).repeat(8), torch.arange(5).repeat(4)
    return subject(
        forget,
        (seen, clouds(seen, centres, 0, spread)),
        (heldout, clouds(heldout, centres, 1, spread)),
        architecture="CLIP",
    )


def test_what_is_in_the_features_is_found_without_text() -> None:
    got = Recovery().compute(made(torch.eye(5), ["fruit"]), {})
    for name in ("linear_probe", "knn", "prototype"):
        assert got[name]["recall"] == got[name]["retain_accuracy"] == 1.0
    assert got["linear_probe"]["roc_auc"] == [1.0, 1.0, 1.0]
    balanced = got["linear_probe"]["balanced_accuracy"]
    assert (balanced[0], balanced[2]) == (1.0, 1.0)
    # Of 8 and 12 images: Wilson's lower ends are 1/(1 + z²/n), and each counts half.
    ends = [1 / (1 + 1.959964**2 / n) for n in (8, 12)]
    assert balanced[1] == pytest.approx(1 - ((1 - ends[0]) ** 2 + (1 - ends[1]) ** 2) ** 0.5 / 2)
    assert (got["images"], got["retained"]) == (8, 12)
    rows = Recovery().rows(got)
    assert rows["k-NN: recall of the forgotten, %"] == "100.0 [67.6, 100.0] of 8"
    assert rows["forgotten against retained: ROC-AUC"] == "1.00 [1.00, 1.00] of 8 against 12"
    assert got["few_shot_prototype"]["shots"] == [1, 2, 4, 8, 16]
    assert got["few_shot_prototype"]["recall"][-1] == 1.0
    assert got["chance"] == 1 / 3  # three subcategories


def test_what_lies_among_another_class_is_not_found() -> None:
    centres = torch.eye(5)
    centres[2] = centres[4]  # coffee looks like a duck, of which there are as many
    got = Recovery().compute(made(centres, ["coffee"], spread=0.0), {})
    assert got["prototype"]["retain_accuracy"] < 1.0
    # Among the forgotten and the retained there are ducks of either name: nothing tells them apart.
    assert got["linear_probe"]["roc_auc"][0] == pytest.approx(1 - 1 / 8)


def test_a_forgotten_concept_of_a_group_is_a_class_of_its_own() -> None:
    one = made(torch.eye(5), ["red apple"])
    got = Recovery().compute(one, {})
    assert got["chance"] == 1 / 4
    assert got["few_shot_prototype"]["shots"] == [1, 2, 4, 8]  # eight images
    assert got["knn"]["recall"] == 1.0


def test_the_nearest_are_counted_as_by_hand() -> None:
    one = made(torch.eye(5), ["fruit"], spread=0.8)
    got = Recovery().compute(one, {})
    seen, heldout = one.classes[one.seen.concept], one.classes[one.test.concept]
    nearest = (one.test.features @ one.seen.features.T).argsort(1, descending=True)[:, :5]
    votes = [torch.bincount(seen[row], minlength=3).argmax() for row in nearest]
    hits = torch.stack(votes) == heldout
    assert got["knn"]["recall"] == hits[heldout == 0].double().mean()


def test_without_images_of_the_forgotten_there_is_nothing_to_find() -> None:
    one = made(torch.eye(5), ["fruit"])
    assert "held-out images" in (Recovery().unmet(without_heldout(one), {}) or "")
    assert one.heldout is not None
    kept = (~one.heldout.forgotten).nonzero()[:, 0]
    some = replace(one, heldout=one.heldout.subset(kept))
    assert Recovery().unmet(some, {}) == "no held-out images show anything forgotten"
    one_class = replace(one, seen=one.seen.subset(one.seen.forgotten.nonzero()[:, 0]))
    assert "all of one class" in (Recovery().unmet(one_class, {}) or "")


def test_where_all_that_is_held_out_is_forgotten_there_is_nothing_to_part() -> None:
    one = made(torch.eye(5), ["fruit"])
    assert one.heldout is not None
    some = replace(one, heldout=one.heldout.subset(one.heldout.forgotten.nonzero()[:, 0]))
    got = Recovery().compute(some, {})
    assert got["linear_probe"]["roc_auc"] is None
    assert got["linear_probe"]["retain_accuracy"] is None
    assert Recovery().rows(got)["forgotten against retained: ROC-AUC"] == "–"
