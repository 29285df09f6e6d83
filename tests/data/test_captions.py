from __future__ import annotations

import pytest
import torch

from riemann_unlearn import data
from riemann_unlearn.data import captions


def test_sampled_captions_are_the_name_keywords_or_both() -> None:
    apple = data.Concept("1", "red apple", ("fruit", "health", "snack"))
    generator = torch.Generator().manual_seed(0)
    drawn = [captions.sample_caption(apple, generator) for _ in range(2000)]
    plain = drawn.count("red apple") / len(drawn)
    both = sum(text.startswith("red apple, ") for text in drawn) / len(drawn)
    rest = 1 - captions.NAME_PROBABILITY
    assert plain == pytest.approx(captions.NAME_PROBABILITY, abs=0.04)
    assert both == pytest.approx(rest / 2, abs=0.03)
    words = {word for text in drawn for word in text.split(", ")}
    assert words == {"red apple", "fruit", "health", "snack"}
    assert max(text.count(", ") for text in drawn) == 2
    again = torch.Generator().manual_seed(0)
    assert [captions.sample_caption(apple, again) for _ in range(2000)] == drawn


def test_keywords_stand_alone_or_after_the_name() -> None:
    apple = data.Concept("1", "red apple", ("fruit", "snack"))
    assert captions.keyword_caption(apple, ["snack"]) == "snack"
    assert captions.keyword_caption(apple, ["snack"], with_name=True) == "red apple, snack"
    assert captions.keyword_caption(apple, []) == "red apple"


def test_a_concept_without_keywords_is_called_by_its_name() -> None:
    apple = data.Concept("1", "apple")
    generator = torch.Generator().manual_seed(0)
    assert {captions.sample_caption(apple, generator) for _ in range(50)} == {"apple"}
