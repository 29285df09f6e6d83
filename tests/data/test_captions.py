"""Captions and the vocabulary they are read with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from riemann_unlearn import data
from riemann_unlearn.data import build_vocabulary, captions
from riemann_unlearn.data.build_vocabulary import VOCABULARY, corpus


def test_sampled_captions_are_the_name_keywords_or_both() -> None:
    apple = data.Concept("1", "red apple", ("fruit", "health", "snack"), "food-fruit", "Food & Drink")
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
    apple = data.Concept("1", "red apple", ("fruit", "snack"), "food-fruit", "Food & Drink")
    assert captions.keyword_caption(apple, ["snack"]) == "snack"
    assert captions.keyword_caption(apple, ["snack"], with_name=True) == "red apple, snack"
    assert captions.keyword_caption(apple, []) == "red apple"


def test_a_concept_without_keywords_is_called_by_its_name() -> None:
    apple = data.Concept("1", "apple", (), "food-fruit", "Food & Drink")
    generator = torch.Generator().manual_seed(0)
    assert {captions.sample_caption(apple, generator) for _ in range(50)} == {"apple"}


def test_the_bundled_vocabulary_splits_every_caption_as_clips_does() -> None:
    full, small = SimpleTokenizer(), SimpleTokenizer(bpe_path=str(VOCABULARY))
    texts = corpus(data.load("emoji").taxonomy)
    for text in texts:
        pieces = [[t.decoder[i] for i in t.encode(text)] for t in (full, small)]
        assert pieces[0] == pieces[1], text
    assert small.vocab_size < full.vocab_size / 5


def test_the_vocabulary_spells_out_what_it_does_not_know() -> None:
    small = SimpleTokenizer(bpe_path=str(VOCABULARY))
    assert small.decode(small.encode("quetzalcoatlus ß")).strip() == "quetzalcoatlus ß"


def test_the_vocabulary_can_be_rebuilt_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_vocabulary.main(["--check"]) == 0
    monkeypatch.setattr(build_vocabulary, "corpus", lambda taxonomy: ["red apple"])
    output = ["--output", str(tmp_path / "v.gz")]
    assert build_vocabulary.main(output) == 0
    assert SimpleTokenizer(bpe_path=str(tmp_path / "v.gz")).vocab_size < 530
    assert build_vocabulary.main(["--check"]) == 1
    assert capsys.readouterr().out.endswith("differs\n")
