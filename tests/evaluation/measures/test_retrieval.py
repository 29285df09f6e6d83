from __future__ import annotations

import torch
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import retrieval_hit_rate

from riemann_unlearn.evaluation.measures.retrieval import Retrieval
from tests.evaluation.worlds import subject


def test_both_directions_agree_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    concept = torch.tensor([0, 0, 1, 2, 2, 2, 3])  # the fifth has no image
    features = normalize(torch.randn(7, 6, generator=generator), dim=-1)
    names = normalize(torch.randn(5, 6, generator=generator), dim=-1)
    captions = (names, names[:3], names[:2])
    one = subject(["fruit"], (concept, features), None, features=captions)
    groups = {"forget": one.selection.concepts, "retain": ~one.selection.concepts}
    got = Retrieval().compute(one, {})
    similarity = features @ names.T
    for group, mask in groups.items():
        for k in (1, 5):
            by_image = [
                retrieval_hit_rate(similarity[i], torch.arange(5) == concept[i], top_k=k)
                for i in range(7)
                if mask[concept[i]]
            ]
            by_text = [
                retrieval_hit_rate(similarity[:, j], concept == j, top_k=k) for j in range(4) if mask[j]
            ]
            assert got[group][f"image_to_text_at_{k}"] == torch.stack(by_image).mean()
            assert got[group][f"text_to_image_at_{k}"] == torch.stack(by_text).double().mean()


def test_a_tie_counts_against_the_model_and_nothing_has_no_recall() -> None:
    concept = torch.tensor([0, 1])
    one = subject(["owl"], (concept, torch.ones(2, 5)), None, features=(torch.ones(5, 5),) * 3)
    got = Retrieval().compute(one, {})
    assert got["retain"]["image_to_text_at_1"] == got["retain"]["text_to_image_at_1"] == 0.0
    assert (got["forget"].pop("images"), got["forget"].pop("names")) == (0, 0)
    assert set(got["forget"].values()) == {None}
    assert (got["retain"]["images"], got["retain"]["names"]) == (2, 2)
    rows = Retrieval().rows(Retrieval().compute(one, {}))
    assert rows["retain: text to image, recall@1"] == "0.0 [0.0, 65.8] of 2"
    assert rows["forget: text to image, recall@1"] == "–"
