from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from riemann_unlearn import data
from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.data.sources.fashion_mnist import DEBIAN_FOLDER, FOLDER_VARIABLE, FashionMNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_files(folder: Path, seen: int = 20, heldout: int = 10) -> Path:
    """Images whose every pixel is their label; the seen ones compressed, the held-out ones not."""
    for prefix, count in (("train", seen), ("t10k", heldout)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = np.broadcast_to(labels[:, None, None], (count, 28, 28)).copy()
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{prefix}-{kind}-ubyte"
            if prefix == "train":
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder


def test_the_files_are_read_from_the_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(write_files(tmp_path)))
    dataset = data.load("fashion-mnist")
    assert dataset.name == "fashion-mnist"
    assert data.load(tmp_path).name == str(tmp_path)
    assert dataset.heldout is not None
    assert (len(dataset.seen), len(dataset.heldout)) == (20, 10)
    for part in (dataset.seen, dataset.heldout):
        assert part.images.shape[1:] == (3, 28, 28)
        assert part.images.dtype == torch.uint8
        assert (part.images == (255 - part.concept).view(-1, 1, 1, 1)).all()  # inverted: dark on white
        assert part.images.stride(1) == 0  # the channels share their memory
    assert data.load(tmp_path).seen.concept.tolist() == dataset.seen.concept.tolist()


def test_a_class_is_a_concept_to_forget_with_a_group_above(tmp_path: Path) -> None:
    taxonomy = data.load(write_files(tmp_path)).taxonomy
    assert [level.name for level in taxonomy.levels] == ["name", "class", "kind"]
    assert taxonomy.levels[1].labels == taxonomy.levels[0].labels
    assert taxonomy.levels[1].captions[0] == "t shirt"
    assert taxonomy.levels[2].labels == ("clothing", "footwear", "accessories")
    chosen = taxonomy.select(["ankle boot"])
    assert chosen.concepts.nonzero().tolist() == [[9]]
    assert [int(mask.sum()) for mask in chosen.forgotten] == [1, 1, 0]
    words = [word for concept in taxonomy.concepts for word in concept.keywords]
    assert len(words) == len(set(words)) == 40
    assert not {c.name for c in taxonomy.concepts} & set(words)


def test_batches_take_it(tmp_path: Path) -> None:
    dataset = data.load(write_files(tmp_path))
    batch = make_batch(dataset.seen, torch.arange(4), (16, 16), torch.Generator().manual_seed(0))
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.texts[batch.pairings[1].row[2]] == "pullover"
    assert batch.texts[batch.pairings[2].row[2]] == "clothing"


def test_missing_files_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(
        ValueError, match=r"package dataset-fashion-mnist, or set FASHION_MNIST .*torchvision"
    ):
        data.load("fashion-mnist")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t10k-labels-idx1-ubyte",
            b"\0\0\x08\x01\0\0\0\x0b0123456789",
            "is not an idx file of bytes in 1 dim",
        ),
        ("t10k-labels-idx1-ubyte", b"", "is not an idx file of bytes in 1 dim"),
        ("t10k-labels-idx1-ubyte", idx(np.full(10, 10, np.uint8)), "10 labels up to 10"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((9, 28, 28), np.uint8)), r"holds \(9, 28, 28\)"),
        ("train-images-idx3-ubyte.gz", b"not gzip", "is not readable"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_files(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path)


@pytest.mark.skipif(not FashionMNIST().opens(DEBIAN_FOLDER), reason="needs Debian's dataset-fashion-mnist")
def test_debians_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    dataset = data.load("fashion-mnist")
    assert dataset.heldout is not None
    assert torch.bincount(dataset.seen.concept).tolist() == 10 * [6000]
    assert torch.bincount(dataset.heldout.concept).tolist() == 10 * [1000]
    # Light background: the corners of a garment's picture are empty.
    assert (dataset.heldout.images[:, 0, :2, :2] > 200).float().mean() > 0.9
