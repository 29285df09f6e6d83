"""Rebuild the bundled BPE vocabulary: those of CLIP's merges that the emoji captions use.

    python -m tools.build_vocabulary [--check]

CLIP's vocabulary has 49,408 tokens, of which the captions use a tenth, and the unused rows would be most
of a small model. Byte-pair encoding applies, at every step, the merge of lowest rank among those that
apply. Keeping every merge that some caption's encoding applies, in the order of rank, therefore leaves
the encoding of every caption as it was; an unknown word falls into smaller pieces, and none is lost.
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, get_pairs

import riemann_unlearn
from riemann_unlearn.data import Taxonomy, load
from riemann_unlearn.io import atomic_write

VOCABULARY = Path(riemann_unlearn.__file__).parent / "models" / "bundled" / "bpe_emoji.txt.gz"
PROMPT_WORDS = "a an the of photo picture drawing icon emoji image"


def corpus(taxonomy: Taxonomy) -> list[str]:
    """Every caption the taxonomy can give, and the words of common prompts."""
    texts = [PROMPT_WORDS, "a, b"]
    for level in reversed(taxonomy.levels[1:]):
        texts += level.captions
    for concept in taxonomy.concepts:
        texts += [concept.name, *concept.keywords]
    return texts


def used_merges(tokenizer: SimpleTokenizer, texts: list[str]) -> list[tuple[str, str]]:
    """The merges applied in encoding ``texts``, in the order of their rank."""
    used: set[tuple[str, str]] = set()
    for text in texts:
        for token in tokenizer.pat.findall(tokenizer.clean_fn(text)):
            symbols = [tokenizer.byte_encoder[byte] for byte in token.encode()]
            symbols[-1] += "</w>"
            while len(symbols) > 1:
                best = min(get_pairs(tuple(symbols)), key=lambda p: tokenizer.bpe_ranks.get(p, 1e9))
                if best not in tokenizer.bpe_ranks:
                    break
                used.add(best)
                symbols = _merge(symbols, best)
    return sorted(used, key=tokenizer.bpe_ranks.__getitem__)


def vocabulary_file(merges: list[tuple[str, str]]) -> bytes:
    """The merges in the form that open_clip's tokenizer reads, the same to the byte every time."""
    lines = ["#version: riemann_unlearn, a subset of CLIP's bpe_simple_vocab_16e6"]
    lines += [" ".join(pair) for pair in merges]
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="", compresslevel=9) as file:
        file.write("\n".join(lines).encode())
    return buffer.getvalue()


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def main(arguments: list[str] | None = None) -> int:
    """Write the vocabulary, or check that it comes out as it is."""
    parser = argparse.ArgumentParser(description="Rebuild the bundled BPE vocabulary.")
    parser.add_argument("--output", type=Path, default=VOCABULARY)
    parser.add_argument("--check", action="store_true", help="compare with what is in --output")
    options = parser.parse_args(arguments)
    merges = used_merges(SimpleTokenizer(), corpus(load("emoji").taxonomy))
    content = vocabulary_file(merges)
    if options.check:
        same: bool = options.output.read_bytes() == content
        print("identical to the byte" if same else "differs")
        return 0 if same else 1
    atomic_write(options.output, content)
    print(f"{options.output}: {len(merges)} merges, {len(merges) + 514} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
