from __future__ import annotations

import json
from typing import Any

import pytest

from riemann_unlearn.evaluation.verdict import (
    GONE,
    HIDDEN,
    KNOWN,
    UNSEEN,
    excess_over_concepts,
    pooled,
    verdict,
)


def full(images: int = 200, *, oracle: bool = True, **found: float) -> dict[str, Any]:
    """An audit in which everything is 0.3 in each model, but for what is given of the one in question."""
    roles = ["before", "after", "oracle"] if oracle else ["before", "after"]

    def of(name: str, role: str, usual: float = 0.3) -> float:
        return found.get(name, usual) if role == "after" else usual

    def values(make: Any) -> dict[str, Any]:
        return {role: make(role) for role in roles}

    return {
        "zero_shot": values(
            lambda role: {"heldout": {"forget": {"accuracy": of("captions", role, 0.0), "images": images}}}
        ),
        "recovery": values(
            lambda role: {
                "linear_probe": {"recall": of("probe", role)},
                "knn": {"recall": of("knn", role)},
                "prototype": {"recall": of("prototype", role)},
                "images": images,
            }
        ),
        "relearning": values(
            lambda role: {
                "shots": [0, 1, 2, 16],
                "accuracy": [of(f"shots{n}", role) for n in (0, 1, 2, 16)],
                "images": images,
            }
        ),
        "membership": values(
            lambda role: {
                "class_membership": {"auc": [of("auc", role), 0, 1], "members": 900, "nonmembers": images}
            }
        ),
        "chance": {"zero_shot": {"accuracy": 0.01}},
        "unmet": {},
    }


def word(**found: float) -> str | None:
    reached = verdict(full(200, oracle=True, **found))
    assert reached is not None
    return reached.verdict


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, UNSEEN),
        ({"captions": 0.02}, UNSEEN),
        ({"captions": 0.021}, KNOWN),
        ({"probe": 0.32}, UNSEEN),
        ({"probe": 0.321}, HIDDEN),
        ({"knn": 0.321}, HIDDEN),
        ({"prototype": 0.321}, HIDDEN),
        ({"shots0": 0.321}, HIDDEN),
        ({"auc": 0.321}, HIDDEN),
        ({"shots1": 0.321}, GONE),
        ({"shots16": 0.321}, GONE),
        ({"shots16": 0.32}, UNSEEN),
        ({"shots2": 1.0}, UNSEEN),  # two images are not among those that it is held to
        ({"shots16": 0.9, "knn": 0.9}, HIDDEN),
        ({"captions": 0.5, "knn": 0.9}, KNOWN),
        ({"probe": 0.0, "shots16": 0.0}, UNSEEN),
    ],
)
def test_each_bound_is_where_it_is_said_to_be(found: dict[str, float], expected: str) -> None:
    assert word(**found) == expected


def test_the_sentence_has_the_figures_that_decide() -> None:
    reached = verdict(full(20, probe=0.7, shots16=0.85))
    assert reached is not None
    assert reached.sentence == (
        "Hidden, not gone: its captions find 0.0 % [0.0, 16.1] of 20 images, but more than in a retrained "
        "model + 2 points is found by a linear probe, 70.0 % [48.1, 85.5] (retrained 30.0 % [14.5, 51.9]) of "
        "20; after fine-tuning on 16 images of it, 85.0 % [64.0, 94.8] (retrained 30.0 % [14.5, 51.9]) of 20."
    )
    gone = verdict(full(shots1=0.5))
    assert gone is not None
    assert gone.sentence.startswith("Gone from the features, but it comes back: its captions find 0.0 %")
    assert "on 1 image of it" in gone.sentence
    unseen = verdict(full(knn=0.31))
    assert unseen is not None
    assert "the most by nearest neighbours, 31.0" in unseen.sentence
    known = verdict(full(captions=0.5))
    assert known is not None
    assert known.sentence == "Known: its captions find 50.0 % [43.1, 56.9] of 200 images, and a guess 1.0 %."


def test_without_an_oracle_or_a_measure_it_cannot_be_said() -> None:
    reached = verdict(full(oracle=False, knn=1.0))
    assert reached is not None
    assert reached.verdict is None
    assert "cannot be said" in reached.sentence
    assert "--oracle" in reached.sentence
    some = full()
    del some["relearning"]
    some["membership"] = {"after": None}
    some["unmet"] = {"membership": "it needs held-out images"}
    reached = verdict(some)
    assert reached is not None
    assert reached.verdict is None
    assert "relearning: not asked for; membership: it needs held-out images" in reached.sentence
    # That captions find it can be said of any.
    known = verdict({**full(oracle=False, captions=0.5), "recovery": {}})
    assert known is not None
    assert known.verdict == KNOWN
    assert verdict({"unmet": {}, "chance": {}}) is None
    nobody = full()
    nobody["zero_shot"]["after"]["heldout"]["forget"]["accuracy"] = None
    assert verdict(nobody) is None


def test_a_verdict_is_the_same_of_an_audit_that_was_written_and_read() -> None:
    one = full(probe=0.7)
    reached, again = verdict(one), verdict(json.loads(json.dumps(one)))
    assert reached == again
    assert reached is not None
    assert json.loads(json.dumps(reached.to_dict()))["verdict"] == HIDDEN


def test_several_concepts_are_pooled_by_their_images() -> None:
    """Ten of 100 and nothing of 300 are 10 of 400."""
    audits = [full(100, probe=0.4, captions=0.04), full(300)]
    reached = pooled(audits)
    (probe,) = (trace for trace in reached.traces if trace.name == "by a linear probe")
    assert probe.images == 400
    assert probe.shares["after"] == pytest.approx((40 + 90) / 400)
    assert probe.excess == pytest.approx(0.025)
    # One concept alone is known; pooled, captions find 1 %.
    assert reached.captions.shares["after"] == pytest.approx(0.01)
    assert reached.verdict == HIDDEN
    mean, low, high = excess_over_concepts(audits)["by a linear probe"]
    assert mean == pytest.approx(0.025)
    assert (low, high) == pytest.approx((0.0, 0.1))
    # What one of them was not asked is left out.
    fewer = full()
    for value in fewer["relearning"].values():
        value["shots"], value["accuracy"] = [0, 1], [0.3, 0.3]
    names = [trace.name for trace in pooled([full(), fewer]).traces]
    assert "after fine-tuning on 1 image of it" in names
    assert "after fine-tuning on 16 images of it" not in names
    with pytest.raises(ValueError, match="expected full audits with the measure 'zero_shot', got 0 of 0"):
        pooled([])
    without = pooled([full(oracle=False), full(oracle=False)])
    assert without.verdict is None
    assert excess_over_concepts([full(oracle=False)]) == {}
