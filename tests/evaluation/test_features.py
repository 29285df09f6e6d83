from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from riemann_unlearn.data import Dataset
from riemann_unlearn.evaluation import features as module
from riemann_unlearn.evaluation import zero_shot
from riemann_unlearn.evaluation.features import (
    encode_captions,
    encode_images,
    encode_texts,
    nearest,
    ranks,
    warn_of_shared,
)
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.spaces import Cosine, Space
from tests.conftest import make_model


@dataclass(frozen=True, eq=False)
class Given(Space):
    """A space whose similarities are given."""

    name: ClassVar[str] = "given"
    table: Tensor | None = None

    def pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        assert self.table is not None
        return self.table


def test_ranks_count_the_better_and_the_equal() -> None:
    table = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    own = torch.tensor([0, 2, 1])
    assert ranks(Given(table=table), torch.zeros(3, 1), torch.zeros(3, 1), own).tolist() == [0, 2, 2]


@pytest.mark.parametrize("architecture", ["CLIP", "MERU"])
def test_both_spaces_rank_as_their_similarities_do_and_ties_are_exact(architecture: str) -> None:
    space = make_model(architecture).space.detached()
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (30, 20)
    )
    texts[10:15] = texts[:5]
    images[25:] = texts[:5]  # at their own texts, which have doubles
    own = torch.arange(30) % 5
    similarity = space.pairwise(images.double(), texts.double())
    want = (similarity >= similarity.gather(1, own[:, None]) - 1e-12).sum(1) - 1
    assert torch.equal(ranks(space, images, texts, own), want)
    assert want.min() == 1
    assert torch.equal(nearest(space, images[:25], texts[5:], 2), similarity[:25, 5:].topk(2, dim=1).indices)


def test_nan_does_not_pass_for_forgetting() -> None:
    missing, zeros, own = torch.full((1, 2), torch.nan), torch.zeros(2, 2), torch.zeros(1).long()
    for images, texts in ((missing, zeros), (zeros[:1], missing.expand(2, 2))):
        with pytest.raises(ValueError, match="features are not finite"):
            ranks(Cosine(), images, texts, own)
    with pytest.raises(ValueError, match="contain NaN"):
        ranks(Given(table=missing), zeros[:1], zeros, own)


def test_chunks_do_not_matter(world: Dataset, model: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [concept.name for concept in world.taxonomy.concepts]
    whole = encode_images(model, world.seen.images), encode_texts(model, texts)
    monkeypatch.setattr(module, "CHUNK", 3)
    parts = encode_images(model, world.seen.images), encode_texts(model, texts)
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_list_of_images_of_several_sizes_is_encoded_each_by_itself(meru: DualEncoder) -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, h, w, generator=generator, dtype=torch.float32) for h, w in ((16, 16), (20, 9))]
    got = encode_images(meru, images)
    for row, image in zip(got, images, strict=True):
        assert torch.allclose(row, encode_images(meru, image[None])[0], atol=1e-6)


def test_evaluation_leaves_each_modules_mode_as_it_was(world: Dataset, meru: DualEncoder) -> None:
    meru.train()
    layer = next(module for module in meru.visual.modules() if isinstance(module, torch.nn.LayerNorm))
    layer.eval()  # as one does with batch statistics that are to stay
    modes = [module.training for module in meru.modules()]
    before = {name: value.clone() for name, value in meru.state_dict().items()}
    zero_shot(meru, world.seen)
    assert [module.training for module in meru.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in meru.state_dict().items())
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        encode_images(meru, torch.zeros(2, 5, 16, 16))
    with pytest.raises((RuntimeError, IndexError)):
        module._encode_tokens(meru, torch.full((1, 16), 10**6))
    assert [module.training for module in meru.modules()] == modes


def test_captions_that_differ_beyond_the_context_are_told(meru: DualEncoder) -> None:
    long = " ".join(["very"] * 20)
    captions = encode_captions(meru, ["owl", f"{long} old owl", f"{long} young owl", "duck"])
    assert captions.shared.tolist() == captions.tied.tolist() == [False, True, True, False]
    with pytest.warns(UserWarning, match=r"2 captions read the same .*old owl.*young owl.* most 16 tokens"):
        warn_of_shared([captions])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_shared([encode_captions(meru, ["owl", "duck"])])


def test_a_model_that_reads_nothing_ties_all_captions_and_shares_none(meru: DualEncoder) -> None:
    with torch.no_grad():
        for parameter in meru.text.parameters():
            parameter.zero_()
    captions = encode_captions(meru, ["owl", "duck"])
    assert captions.shared.tolist() == [False, False]
    assert captions.tied.tolist() == [True, True]
