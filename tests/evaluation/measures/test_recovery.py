from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from riemann_unlearn.evaluation.encoded import Encoded
from riemann_unlearn.evaluation.recovery import recovery
from tests.evaluation.worlds import subject, without_heldout


def clouds(concept: Tensor, centres: Tensor, seed: int, spread: float = 0.05) -> Tensor:
    noise = torch.randn(len(concept), centres.shape[1], generator=torch.Generator().manual_seed(seed))
    return normalize(centres[concept] + spread * noise, dim=-1)


def made(centres: Tensor, forget: list[str], spread: float = 0.05) -> Encoded:
    seen, heldout = torch.arange(5).repeat(8), torch.arange(5).repeat(4)
    return subject(
        forget,
        (seen, clouds(seen, centres, 0, spread)),
        (heldout, clouds(heldout, centres, 1, spread)),
        architecture="CLIP",
    )


def test_what_is_in_the_features_is_found_without_text() -> None:
    found = recovery(made(torch.eye(5), ["fruit"]))
    assert found is not None
    for name in ("linear_probe", "knn", "prototype"):
        assert found[name]["recall"] == found[name]["retain_accuracy"] == 1.0
    assert found["linear_probe"]["roc_auc"] == found["linear_probe"]["balanced_accuracy"] == 1.0
    assert found["few_shot_prototype"]["shots"] == [1, 2, 4, 8, 16]
    assert found["few_shot_prototype"]["recall"][-1] == 1.0
    assert found["chance"] == 1 / 3  # three subcategories


def test_what_lies_among_another_class_is_not_found() -> None:
    centres = torch.eye(5)
    centres[2] = centres[4]  # coffee looks like a duck, of which there are as many
    found = recovery(made(centres, ["coffee"], spread=0.0))
    assert found is not None
    assert found["prototype"]["retain_accuracy"] < 1.0
    # Among the forgotten and the retained there are ducks of either name: nothing tells them apart.
    assert found["linear_probe"]["roc_auc"] == pytest.approx(1 - 1 / 8)


def test_a_forgotten_concept_of_a_group_is_a_class_of_its_own() -> None:
    one = made(torch.eye(5), ["red apple"])
    assert one.labels.tolist() == [3, 0, 1, 2, 2]
    found = recovery(one)
    assert found is not None
    assert found["chance"] == 1 / 4
    assert found["few_shot_prototype"]["shots"] == [1, 2, 4, 8]  # eight images
    assert found["knn"]["recall"] == 1.0


def test_the_nearest_are_counted_as_by_hand() -> None:
    one = made(torch.eye(5), ["fruit"], spread=0.8)
    found = recovery(one)
    assert found is not None
    assert one.heldout is not None
    assert one.heldout_features is not None
    seen, heldout = one.labels[one.seen.concept], one.labels[one.heldout.concept]
    nearest = (one.heldout_features @ one.seen_features.T).argsort(1, descending=True)[:, :5]
    votes = [torch.bincount(seen[row], minlength=3).argmax() for row in nearest]
    hits = torch.stack(votes) == heldout
    assert found["knn"]["recall"] == hits[heldout == 0].double().mean()


def test_without_images_of_the_forgotten_there_is_nothing_to_find() -> None:
    one = made(torch.eye(5), ["fruit"])
    assert recovery(without_heldout(one)) is None
    assert one.heldout is not None
    assert one.heldout_features is not None
    kept = ~one.selection.concepts[one.heldout.concept]
    assert (
        recovery(replace(one, heldout=one.heldout.subset(kept), heldout_features=one.heldout_features[kept]))
        is None
    )
