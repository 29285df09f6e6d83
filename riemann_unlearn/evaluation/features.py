"""Features of images and captions in chunks, and the rank of each image's own caption."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riemann_unlearn import processes
from riemann_unlearn.models import DualEncoder, evaluating
from riemann_unlearn.spaces import Space

CHUNK = 512
"""Texts encoded and features ranked at a time; bounds the memory and has no effect on the result."""
IMAGES = 64
"""Images encoded at a time. On a CPU more take longer: what a layer gives of 512 is so large that it goes
back to the system, and the next layer asks for its pages again. The bundled model takes 1.9 s of one core for
1,024 images in chunks of 512, 1.3 s of 256 and 1.06 s of 64."""

DECODED = 16
"""Images of any size that are decoded at a time."""


@torch.no_grad()
def encode_images(model: DualEncoder, images: Any) -> Tensor:
    """Features of raw ``images``, shape (N, D), in evaluation mode and in chunks.

    Parameters
    ----------
    model : DualEncoder
    images : Tensor, shape (N, 3, H, W), or list of Tensor, or whatever has a length and is indexed by rows
        As :attr:`riemann_unlearn.data.Samples.images`, or a list of images that may differ in size.
    """

    def encode(rows: Tensor) -> Tensor:
        return model.encode_image(_prepared(model, images, rows))

    return _in_chunks(model, encode, len(images), IMAGES)


def _prepared(model: DualEncoder, images: Any, rows: Tensor) -> Tensor:
    """The images at ``rows`` as the tower takes them."""
    if isinstance(images, Tensor):
        return model.preprocess(images[rows])
    if isinstance(images, list):
        return model.preprocess([images[row] for row in rows.tolist()])
    # Decoded and made small a few at a time: a chunk of photographs at their own sizes is gigabytes.
    return torch.cat([model.preprocess(images[some]) for some in torch.split(rows, DECODED)])


def encode_texts(model: DualEncoder, texts: Sequence[str]) -> Tensor:
    """Features of ``texts``, shape (N, D), in evaluation mode and in chunks."""
    return _encode_tokens(model, model.tokenize(texts))


@dataclass(frozen=True)
class Captions:
    """Captions to choose among, and which of them a model can tell from the others."""

    texts: tuple[str, ...]
    features: Tensor
    """Shape (N, D)."""
    shared: Tensor
    """bool, shape (N,): the token ids are those of another caption as well, so that no model can tell the
    two apart, whatever it knows. A caption that is longer than the model reads may be such a one."""
    tied: Tensor
    """bool, shape (N,): the features are exactly those of another caption. Where the token ids differ, that
    is the model's own doing."""
    context_length: int
    """Tokens that the model reads of a caption."""


def encode_captions(model: DualEncoder, texts: Sequence[str]) -> Captions:
    """Features of captions, with what is equal among them.

    Parameters
    ----------
    model : DualEncoder
    texts : sequence of str
    """
    # Compared after tokenizing, not as strings: what is cut off, folded or unknown makes captions equal too.
    tokens = model.tokenize(texts)
    features = _encode_tokens(model, tokens)
    return Captions(tuple(texts), features, _repeated(tokens), _repeated(features), tokens.shape[1])


def warn_of_shared(captions: Iterable[Captions]) -> None:
    """Warn, once for all, of captions that read the same; it says which, and how much the model reads.

    Parameters
    ----------
    captions : iterable of Captions
        Each a set of captions that are asked for against one another.
    """
    alike: list[str] = []
    context_length = 0
    for part in captions:
        alike += [part.texts[row] for row in part.shared.nonzero()[:, 0].tolist()]
        context_length = part.context_length
    if alike:
        named = ", ".join(map(repr, alike[:4])) + (", ..." if len(alike) > 4 else "")
        warnings.warn(
            f"{len(alike)} captions read the same to this model as another ({named}): it reads at most "
            f"{context_length} tokens of a caption, and their tokens are equal. Images of them are not asked "
            "about, for no model could tell them apart",
            stacklevel=3,
        )


@torch.no_grad()
def ranks(space: Space, image_features: Tensor, text_features: Tensor, own: Tensor) -> Tensor:
    """Rank of each image's own text among all texts, 0 being the most similar.

    Parameters
    ----------
    space : Space
        Says what is similar.
    image_features : Tensor, shape (N, D)
    text_features : Tensor, shape (M, D)
    own : Tensor, shape (N,)
        Long; row of ``text_features`` that belongs to each image.

    Returns
    -------
    Tensor, shape (N,)
        Long; how many other texts are at least as similar as the image's own: a tie counts against the model,
        so that an encoder which maps everything to one point scores nothing, and not by luck.

    Raises
    ------
    ValueError
        When features are not finite: a broken model must not pass for one that has forgotten.
    """
    if not (image_features.isfinite().all() and text_features.isfinite().all()):
        raise ValueError(
            "the model's features are not finite; its weights are not usable "
            "(a diverged run? try a smaller learning rate)"
        )
    # A chunk at a time, for a space without an op of its own makes the matrix of similarities.
    chunks = zip(torch.split(image_features, CHUNK), torch.split(own, CHUNK), strict=True)
    return torch.cat([space.ranks(features, text_features, target) for features, target in chunks])


@torch.no_grad()
def nearest(space: Space, features: Tensor, bank: Tensor, k: int) -> Tensor:
    """The rows of ``bank`` most similar to each feature, the most similar first, long, shape (N, k)."""
    return torch.cat([space.nearest(chunk, bank, k) for chunk in torch.split(features, CHUNK)])


@torch.no_grad()
def _encode_tokens(model: DualEncoder, tokens: Tensor) -> Tensor:
    return _in_chunks(
        model, lambda rows: model.encode_text(tokens[rows.to(tokens.device)]), len(tokens), CHUNK
    )


def _in_chunks(model: DualEncoder, encode: Callable[[Tensor], Tensor], count: int, size: int) -> Tensor:
    """What ``encode`` gives for the rows up to ``count``; several processes do some of the chunks each."""
    # Whole chunks, dealt out: a row's features may depend, in the last bit, on how many are encoded with it.
    rank, n = processes.rank(), processes.count()
    chunks = torch.split(torch.arange(count), size)
    # Whatever mode the model is in: dropout or moving batch statistics would make a figure of chance.
    with evaluating(model):
        own = [encode(rows) for rows in chunks[rank::n]]
    if n == 1:
        return torch.cat(own)
    dealt = processes.exchanged([features.cpu() for features in own])
    return torch.cat([dealt[i % n][i // n] for i in range(len(chunks))]).to(model.device)


def _repeated(rows: Tensor) -> Tensor:
    """Which rows of a matrix occur more than once; bool, shape (N,)."""
    # Exactly equal, bit by bit: near ones can be told apart, and the ranks see to it.
    _, inverse, count = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    repeated: Tensor = count[inverse] > 1
    return repeated
