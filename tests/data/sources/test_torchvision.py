"""Sets as torchvision keeps them, a few images of each made here."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from riemann_unlearn import data
from riemann_unlearn.data.sources.cifar import CIFAR10, CIFAR100
from riemann_unlearn.data.sources.food101 import Food101
from riemann_unlearn.data.sources.pets import Pets
from tests.data.sources.images import write_image

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(labels: dict[str, list[int]], first: int = 0) -> dict[str, Any]:
    """Each image has one value, its label's: red, no green, and blue the other way round."""
    (values, *_) = labels.values()
    pixels = np.zeros((len(values), 3, 1024), np.uint8)
    pixels[:, 0], pixels[:, 2] = np.array(values)[:, None], 255 - np.array(values)[:, None]
    names = [f"image_{first + i}.png" for i in range(len(values))]
    return {"data": pixels.reshape(len(values), 3072), "filenames": names, **labels}


def write_ten(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    contents: dict[str, Any] = {
        f"data_batch_{i}": batch({"labels": [2 * i - 2, 2 * i - 1]}, 2 * i) for i in range(1, 6)
    }
    contents |= {"test_batch": batch({"labels": [3, 9]}, 50), "batches.meta": {"label_names": TEN}}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def write_hundred(root: Path) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir()
    contents = {
        "meta": {
            "fine_label_names": ["apple", "aquarium_fish", "pear"],
            "coarse_label_names": ["fish", "fruit"],
        },
        "train": batch({"fine_labels": [0, 1, 2, 0], "coarse_labels": [1, 0, 1, 1]}),
        "test": batch({"fine_labels": [2], "coarse_labels": [1]}, 4),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def test_cifar_10_has_kinds_above_its_classes(tmp_path: Path) -> None:
    folder = write_ten(tmp_path)
    for path in (tmp_path, folder):
        dataset = data.load(path)
        assert dataset.seen.concept.tolist() == list(range(10))
        assert dataset.heldout is not None
        assert dataset.heldout.concept.tolist() == [3, 9]
    assert [level.name for level in dataset.taxonomy.levels] == ["class", "kind"]
    assert dataset.taxonomy.select(["vehicle"]).concepts.nonzero()[:, 0].tolist() == [0, 1, 8, 9]
    assert dataset.taxonomy.levels[0].captions[0] == "a photo of a airplane."
    images = dataset.seen.images[torch.arange(10)]
    assert images.shape == (10, 3, 32, 32)
    assert (images[:, 0] == torch.arange(10)[:, None, None]).all()
    assert (images[:, 2] == 255 - torch.arange(10)[:, None, None]).all()
    assert dataset.ids[0] == "image_2.png"
    assert dataset.ids[-1] == "image_51.png"


def test_cifar_100_has_its_superclasses(tmp_path: Path) -> None:
    write_hundred(tmp_path)
    dataset = data.load(tmp_path)
    levels = dataset.taxonomy.levels
    assert [(level.name, level.labels) for level in levels] == [
        ("class", ("apple", "aquarium_fish", "pear")),
        ("superclass", ("fruit", "fish")),
    ]
    assert levels[0].captions[1] == "a photo of a aquarium fish."
    assert dataset.seen.concept.tolist() == [0, 1, 2, 0]
    assert dataset.seen.labels(1).tolist() == [0, 1, 0, 0]
    assert dataset.heldout is not None
    assert dataset.heldout.concept.tolist() == [2]


class Evil:
    def __reduce__(self) -> Any:
        return os.getcwd, ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil()), r"it asks for posix\.getcwd, which is no array"),
        (pickle.dumps([1]), "it holds a list"),
        (b"no pickle", "is not a file of CIFAR"),
        (pickle.dumps({"data": np.zeros((1, 7))}), "is not cifar-10 as torchvision keeps it"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}), "as torchvision keeps it: KeyError"),
    ],
)
def test_a_file_that_is_not_cifars_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    folder = write_ten(tmp_path)
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load(folder)
    (folder / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*data_batch_3: No such file"):
        data.load(folder)


def test_food_101_is_split_by_its_lists(tmp_path: Path) -> None:
    folder = tmp_path / "food-101"
    (folder / "meta").mkdir(parents=True)
    for i, name in enumerate(["apple_pie/1", "apple_pie/2", "sushi/3", "sushi/4"]):
        write_image(folder / "images" / f"{name}.jpg", i)
    (folder / "meta" / "train.txt").write_text("apple_pie/1\nsushi/3\n")
    with pytest.raises(ValueError, match=r"cannot read .*test\.txt"):
        data.load(tmp_path)
    (folder / "meta" / "test.txt").write_text("sushi/4\n")
    for path in (tmp_path, folder):
        dataset = data.load(path)
        assert dataset.ids == ("apple_pie/1", "sushi/3", "sushi/4")
        assert dataset.seen.concept.tolist() == [0, 1]
        assert dataset.heldout is not None
        assert dataset.heldout.concept.tolist() == [1]
    assert dataset.taxonomy.levels[0].captions[0] == "a photo of apple pie, a type of food."
    assert dataset.taxonomy.select(["apple pie"]).concepts.tolist() == [True, False]


def test_pets_are_cats_and_dogs(tmp_path: Path) -> None:
    folder = tmp_path / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    lines = [f"Bengal_{i} 6 1 2" for i in range(20)] + [f"american_bulldog_{i} 2 2 1" for i in range(20)]
    for i, line in enumerate(lines):
        write_image(folder / "images" / f"{line.split()[0]}.jpg", i)
    (folder / "annotations" / "trainval.txt").write_text("\n".join([*lines[:35], "# a remark", ""]))
    with pytest.raises(ValueError, match=r"cannot read .*test\.txt"):
        data.load(tmp_path)
    (folder / "annotations" / "test.txt").write_text("\n".join(lines[35:]))
    with pytest.warns(UserWarning, match=r"1 of 41 images .*trainval.txt: '# a remark'"):
        dataset = data.load(tmp_path)
    assert [(level.name, level.labels) for level in dataset.taxonomy.levels] == [
        ("breed", ("Bengal", "american_bulldog")),
        ("species", ("cat", "dog")),
    ]
    assert dataset.taxonomy.levels[0].captions[1] == "a photo of a american bulldog, a type of pet."
    assert dataset.heldout is not None
    assert (len(dataset.seen), len(dataset.heldout)) == (35, 5)


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100, Food101, Pets])
def test_a_set_needs_its_folder(tmp_path: Path, source: type[data.Source]) -> None:
    assert not source().opens(tmp_path)
    for path in (None, tmp_path):
        with pytest.raises(ValueError, match="by the path of the folder that"):
            source().load(path)
