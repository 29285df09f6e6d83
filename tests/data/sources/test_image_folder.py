"""A folder a class: what is a class, what is held out, and the taxonomy beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import riemann_unlearn as ru
from riemann_unlearn import data
from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.data.sources.fashion_mnist import _CLASSES
from riemann_unlearn.data.sources.folders import image_files
from riemann_unlearn.data.sources.image_folder import ImageFolder
from tests.conftest import make_model
from tests.data.sources.images import write_image
from tests.data.sources.test_fashion_mnist import idx


def write_classes(folder: Path, prefix: str = "", each: int = 2) -> Path:
    for number, label in enumerate(["golden_retriever", "tabby-cat", "owl"]):
        for i in range(each):
            write_image(folder / prefix / label / f"{i}.png", 3 * i + number)
    return folder


def shown(samples: data.Samples) -> list[str]:
    return [samples.taxonomy.concepts[i].name for i in samples.concept]


def test_a_sub_folder_is_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_image(tmp_path / "owl" / "at night" / "x.jpg")
    write_image(tmp_path / "owl" / ".hidden.png")
    (tmp_path / "owl" / "notes.txt").write_text("about owls")
    (tmp_path / "empty").mkdir()
    dataset = data.load(tmp_path)
    assert dataset.name == str(tmp_path)
    assert shown(dataset.seen) == ["golden_retriever"] * 2 + ["owl"] * 3 + ["tabby-cat"] * 2
    assert dataset.ids[2:5] == ("owl/0.png", "owl/1.png", "owl/at night/x.jpg")
    assert dataset.heldout is None
    (level,) = dataset.taxonomy.levels
    assert level.name == "class"
    assert level.captions == ("golden retriever", "owl", "tabby-cat")
    for query in ("golden_retriever", "golden retriever", "Golden-Retriever"):
        assert dataset.taxonomy.select([query]).concepts.tolist() == [True, False, False]
    # What is learned is the caption, and not the name of the folder.
    batch = make_batch(dataset.seen, torch.tensor([0]), (16, 16), torch.Generator().manual_seed(0))
    assert batch.texts == ["golden retriever"]


def test_train_and_val_are_seen_and_held_out(tmp_path: Path) -> None:
    write_classes(write_classes(tmp_path, "train"), "val", each=1)
    write_classes(tmp_path, "test", each=1)
    dataset = data.load(tmp_path)
    assert dataset.heldout is not None
    assert (len(dataset.seen), len(dataset.heldout)) == (6, 6)
    assert set(shown(dataset.heldout)) == {"golden_retriever", "tabby-cat", "owl"}
    assert dataset.ids[6] == "test/golden_retriever/0.png"
    # With another folder beside them they are classes themselves.
    write_image(tmp_path / "owl" / "0.png")
    dataset = data.load(tmp_path)
    assert dataset.heldout is None
    assert [c.name for c in dataset.taxonomy.concepts] == ["owl", "test", "train", "val"]


def test_an_image_of_no_class_is_named(tmp_path: Path) -> None:
    write_image(write_classes(tmp_path, each=10) / "logo.png")
    with pytest.warns(UserWarning, match=r"1 of 31 images cannot be used: logo.png \(it is in no class's"):
        assert len(data.load(tmp_path).seen) == 30
    split = write_classes(tmp_path / "split", "train", each=10)
    write_image(split / "loose.png")
    with pytest.warns(UserWarning, match=r"1 of 31 images cannot be used: loose.png"):
        data.load(split)


def test_a_folder_without_classes_is_none(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png")
    assert not ImageFolder().opens(tmp_path)
    assert not ImageFolder().opens(tmp_path / "x.png")
    with pytest.raises(ValueError, match="is nothing that a data source opens"):
        data.load(tmp_path)
    with pytest.raises(ValueError, match="no default place"):
        ImageFolder().load(None)


def test_files_come_in_order_and_links_are_followed(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.PNG", "a/1.webp", "a/c/1.gif", ".git/1.png", "__MACOSX/1.png"):
        write_image(tmp_path / "set" / name)
    write_image(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set" / "z").symlink_to(tmp_path / "elsewhere")
    assert list(image_files(tmp_path / "set")) == [
        "a/1.webp",
        "a/c/1.gif",
        "b/1.PNG",
        "b/2.png",
        "z/1.png",
    ]


CSV = (
    "class,kind,caption,keywords\ntabby-cat,mammal,a tabby,\ngolden_retriever,mammal,,dog; pet\nowl,bird,,\n"
)
YAML = """
levels: [class, kind]
labels:
  tabby-cat: {parents: mammal, caption: a tabby}
  golden_retriever: {parents: [mammal], keywords: [dog, pet]}
  owl: bird
"""


@pytest.mark.parametrize(("name", "text"), [("taxonomy.csv", CSV), ("taxonomy.yaml", YAML)])
def test_a_taxonomy_gives_classes_levels_captions_and_keywords(tmp_path: Path, name: str, text: str) -> None:
    (write_classes(tmp_path) / name).write_text(text)
    taxonomy = data.load(tmp_path).taxonomy
    assert [(level.name, level.labels, level.captions) for level in taxonomy.levels] == [
        ("class", ("owl", "golden_retriever", "tabby-cat"), ("owl", "golden retriever", "a tabby")),
        ("kind", ("bird", "mammal"), ("bird", "mammal")),
    ]
    assert [concept.keywords for concept in taxonomy.concepts] == [(), ("dog", "pet"), ()]
    assert taxonomy.select(["mammal"]).concepts.tolist() == [False, True, True]


def test_levels_of_yaml_need_no_names(tmp_path: Path) -> None:
    (write_classes(tmp_path) / "taxonomy.yml").write_text(
        "labels: {owl: [bird, animal], tabby-cat: [cat, animal], golden_retriever: [dog, animal], x: [y, z]}"
    )
    taxonomy = data.load(tmp_path).taxonomy
    assert [level.name for level in taxonomy.levels] == ["class", "level 1", "level 2"]
    assert taxonomy.levels[2].labels == ("animal",)
    (tmp_path / "taxonomy.yml").write_text("labels: {owl: null, tabby-cat: , golden_retriever: }")
    assert [level.name for level in data.load(tmp_path).taxonomy.levels] == ["class"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "taxonomy.csv",
            "class,kind\nowl,bird\n",
            "lacks 'golden_retriever', which images are labelled with",
        ),
        ("taxonomy.csv", "class,kind\nowl,bird\nowl,bird\n", "has 'owl' twice"),
        ("taxonomy.csv", "class,kind\nowl\n", r"taxonomy.csv:2: it has not as many fields"),
        (
            "taxonomy.csv",
            "class,kind\nowl,\n",
            r"'owl' has the labels \[''\] above it; expected one for each",
        ),
        ("taxonomy.csv", "class,kind\n,bird\n", "a row without a label"),
        ("taxonomy.csv", "class,kind\n", "names no label"),
        ("taxonomy.tsv", "class\tkind\nowl\tbird\towl\n", "it has not as many fields"),
        ("taxonomy.yaml", "owl: bird", "is no taxonomy: expected 'labels:'"),
        ("taxonomy.yaml", "labels: [owl]", "is no taxonomy"),
        ("taxonomy.yaml", "labels: {owl: {parent: bird}}", r"'owl' has \['parent'\]; known are parents"),
        ("taxonomy.yaml", "labels: {owl: [a, b], cat: c}", r"'cat' has the labels \['c'\] above it"),
        ("taxonomy.yaml", "levels: [a]\nlabels: {owl: bird}", r"'owl' has the labels \['bird'\] above it"),
    ],
)
def test_an_unusable_taxonomy_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (write_classes(tmp_path) / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path)


def test_two_taxonomies_are_refused(tmp_path: Path) -> None:
    (write_classes(tmp_path) / "taxonomy.csv").write_text(CSV)
    (tmp_path / "taxonomy.yaml").write_text(YAML)
    with pytest.raises(ValueError, match=r"has taxonomy.csv and taxonomy.yaml; leave one"):
        data.load(tmp_path)


def test_fashion_mnist_as_a_folder_gives_the_figures_of_its_own_source(tmp_path: Path) -> None:
    """Noise in the order of folders' names, so that both have the same rows."""
    order = sorted(range(10), key=lambda label: _CLASSES[label][0])
    generator = np.random.default_rng(0)
    ours, theirs = tmp_path / "idx", tmp_path / "folder"
    ours.mkdir()
    for split, prefix, each in (("train", "train", 3), ("test", "t10k", 2)):
        labels = np.repeat(order, each).astype(np.uint8)
        pixels = generator.integers(0, 256, (len(labels), 28, 28)).astype(np.uint8)
        (ours / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels))
        (ours / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
        for i, (label, image) in enumerate(zip(labels, pixels, strict=True)):
            path = theirs / split / _CLASSES[label][0] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - image).save(path)
    rows = [f"{name},{name.replace('-', ' ')},{kind},{';'.join(words)}" for name, kind, words in _CLASSES]
    (theirs / "taxonomy.csv").write_text("\n".join(["name,class,kind,keywords", *rows]))
    metrics = []
    for folder in (ours, theirs):
        result = ru.unlearn(
            make_model("CLIP"),
            folder,
            forget=["sandal", "bag"],
            method="ac",
            settings={"steps": 2},
            progress=False,
        )
        metrics.append(result.metrics)
    built_in, as_folder = metrics
    assert built_in["before"] == as_folder["before"]
    assert built_in["after"]["forget"] == as_folder["after"]["forget"]
    assert built_in["chance"] == as_folder["chance"]
    assert built_in["audit"] == as_folder["audit"]
