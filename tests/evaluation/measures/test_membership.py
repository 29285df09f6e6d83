from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve
from torch.nn.functional import cosine_similarity, normalize

from riemann_unlearn.data import Dataset
from riemann_unlearn.data.augment import random_view
from riemann_unlearn.evaluation.features import encode_images
from riemann_unlearn.evaluation.intervals import separation
from riemann_unlearn.evaluation.measures import membership as module
from riemann_unlearn.evaluation.measures.membership import Membership
from riemann_unlearn.evaluation.subject import encode
from riemann_unlearn.models import DualEncoder
from tests.evaluation.worlds import subject, without_heldout

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(SCORES, SCORES)
def test_the_rates_are_scikit_learns(members: list[int], nonmembers: list[int]) -> None:
    got = separation(torch.tensor(members), torch.tensor(nonmembers), resamples=2)
    truth = [1] * len(members) + [0] * len(nonmembers)
    scores = members + nonmembers
    assert got["auc"][0] == pytest.approx(roc_auc_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert got["tpr"][0] == pytest.approx(true[false <= 0.01].max())


def test_the_interval_is_as_wide_as_the_sample_is_small() -> None:
    generator = torch.Generator().manual_seed(0)
    widths = []
    for n in (20, 2000):
        drawn = torch.randn(2, n, generator=generator)
        value, low, high = separation(drawn[0] + 1, drawn[1])["auc"]
        assert low <= value <= high
        assert low < 0.7602 < high  # Φ(1/√2), what the two normals have
        widths.append(high - low)
    assert widths[1] < widths[0] / 5  # by √100, and some room


def test_the_threshold_is_the_one_that_parts_the_retained() -> None:
    scores = {
        "kept": torch.tensor([3.0, 4.0, 5.0]),
        "kept_nonmember": torch.tensor([0.0, 1.0, 3.5]),
        "member": torch.tensor([0.5, 2.0, 3.0, 9.0]),
    }
    # At 3 the balanced accuracy is (1 + 2/3)/2; no other threshold has more.
    assert module._nonmember_rate(scores) == 0.5


def test_the_attacks_are_what_they_are_called(world: Dataset, model: DualEncoder) -> None:
    one = encode(model, world, world.taxonomy.select(["food-fruit"]))
    rows = module._rows(one, 100)
    assert {name: len(chosen) for name, chosen in rows.items()} == {
        "member": 6,
        "nonmember": 3,
        "kept": 10,
        "kept_nonmember": 5,
    }
    image = int(rows["member"][0])
    logits = one.space.logits(one.seen.features[image][None], one.captions[0].features)
    p = logits.double().softmax(1)[0, world.seen.concept[image]]
    confidence = module._confidence(one, rows)["member"][0].item()
    # p is of float64, the logits of float32 with a scale of 14: 1e-5 of them is a rounding of a few units.
    assert confidence == pytest.approx((p / (1 - p)).log().item(), abs=1e-4)

    steadiness = Membership()._encoder(one, {"member": rows["member"]}, seed=5)["member"]
    generator = torch.Generator().manual_seed(5)
    images = world.seen.images[rows["member"]]
    views = [
        encode_images(model, random_view(images, model.image_size, generator))
        for _ in range(Membership().views)
    ]
    pairs = [cosine_similarity(a, b) for a, b in combinations(views, 2)]
    assert torch.allclose(steadiness, torch.stack(pairs).mean(0).double(), atol=1e-6)

    kept, gone = module._class_scores(one, rows)
    assert (len(kept), len(gone)) == (5, 3)
    assert (kept <= 0).all()


def test_an_image_learned_by_heart_is_found_out() -> None:
    """Members lie on their captions, non-members beside them; the oracle sees no difference."""
    concept = torch.arange(5).repeat(6)
    on, beside = torch.eye(5)[concept], normalize(torch.eye(5)[concept] + 1, dim=-1)
    one = subject(["fruit"], (concept, on), (concept, beside))
    oracle = subject(["fruit"], (concept, beside), (concept, beside))
    got = Membership().compute(one, {"oracle": oracle})
    assert got["confidence"]["auc"] == got["likelihood_ratio"]["auc"] == [1.0, 1.0, 1.0]
    assert got["confidence"]["tpr"] == [1.0, 1.0, 1.0]
    assert got["confidence"]["nonmember_rate"] == 0.0
    assert (got["members"], got["nonmembers"]) == (12, 12)
    assert (got["class_membership"]["members"], got["class_membership"]["nonmembers"]) == (18, 12)
    rows = Membership().rows(got)
    assert rows["confidence: AUC"] == "1.00 [1.00, 1.00] of 12 against 12"
    assert rows["class membership: AUC"].endswith("of 18 against 12")
    assert rows["confidence: called non-members, %"] == "0.0 [0.0, 24.2] of 12"
    other = Membership().compute(oracle, {"oracle": oracle})
    assert other["confidence"]["auc"][0] == 0.5
    assert "likelihood_ratio" not in other


def test_without_either_kind_of_image_there_is_no_attack() -> None:
    concept = torch.arange(5)
    one = subject(["fruit"], (concept, torch.eye(5)), (concept, torch.eye(5)))
    assert "non-members" in (Membership().unmet(without_heldout(one), {}) or "")
    assert one.heldout is not None
    kept, gone = (~one.heldout.forgotten).nonzero()[:, 0], one.heldout.forgotten.nonzero()[:, 0]
    for rows, reason in ((kept, "anything forgotten"), (gone, "anything retained")):
        some = replace(one, heldout=one.heldout.subset(rows))
        assert reason in (Membership().unmet(some, {}) or "")
    most = subject(["fruit", "drink"], (concept, torch.eye(5)), (concept, torch.eye(5)))
    assert "all of one class" in (Membership().unmet(most, {}) or "")
