from __future__ import annotations

from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer

from riemann_unlearn import data
from tools import build_vocabulary
from tools.build_vocabulary import VOCABULARY, corpus


def test_the_bundled_vocabulary_splits_every_caption_as_clips_does(emoji: data.Dataset) -> None:
    full, small = SimpleTokenizer(), SimpleTokenizer(bpe_path=str(VOCABULARY))
    texts = corpus(emoji.taxonomy)
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
