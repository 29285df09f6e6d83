from __future__ import annotations

import hashlib
import json

import torch

from riemann_unlearn import data
from riemann_unlearn.data.sources.emoji import FOLDER, Emoji


def test_the_bundled_dataset_is_what_its_manifest_says(emoji: data.Dataset) -> None:
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert {path.name for path in FOLDER.glob("*.tar.gz")} == set(manifest["shards"])
    counts = {"seen": 0, "heldout": 0}
    for name, shard in manifest["shards"].items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == shard["sha256"], name
        assert shard["license"] in {"Apache-2.0", "CC-BY-4.0", "MIT"}
        counts[shard["split"]] += shard["samples"]
    assert emoji.name == "emoji"
    assert emoji.heldout is not None
    assert counts == {"seen": len(emoji.seen), "heldout": len(emoji.heldout)}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6


def test_the_bundled_taxonomy_is_unicodes(emoji: data.Dataset) -> None:
    taxonomy = emoji.taxonomy
    assert [len(level) for level in taxonomy.levels] == [1906, 98, 9]
    assert [level.name for level in taxonomy.levels] == ["name", "subcategory", "category"]
    apple = next(c for c in taxonomy.concepts if c.name == "red apple")
    assert (apple.key, apple.path) == ("1f34e", ("food-fruit", "Food & Drink"))
    assert "fruit" in apple.keywords
    # Every concept has at least two seen renderings.
    assert emoji.seen.concept.bincount().min() >= 2


def test_the_bundled_labels_are_in_the_order_that_figures_were_made_with(emoji: data.Dataset) -> None:
    labels = "\n".join(
        f"{a}\t{b}"
        for level in emoji.taxonomy.levels
        for a, b in zip(level.labels, level.captions, strict=True)
    )
    assert (
        hashlib.sha256(labels.encode()).hexdigest()
        == "c406dc902fe53b5dd6e066084840cf6b05d6642144a11714484abd2dc838c023"
    )


def test_the_bundled_images_are_a_tensor(emoji: data.Dataset) -> None:
    assert isinstance(emoji.seen.images, torch.Tensor)
    assert emoji.seen.images.shape[1:] == (3, 48, 48)


def test_no_held_out_rendering_was_seen(emoji: data.Dataset) -> None:
    assert emoji.heldout is not None
    assert emoji.heldout.sources == ("fluent",)
    assert emoji.seen.sources == ("emojione", "fxemoji", "noto", "noto-v1", "twemoji")
    assert isinstance(emoji.seen.images, torch.Tensor)
    assert isinstance(emoji.heldout.images, torch.Tensor)
    seen = {image.numpy().tobytes() for image in emoji.seen.images}
    assert not any(image.numpy().tobytes() in seen for image in emoji.heldout.images)


def test_groups_of_a_folder_of_this_form_are_worded_as_ours(world: data.Dataset) -> None:
    assert "food fruit" in world.taxonomy.levels[1].captions
    assert "food and drink" in world.taxonomy.levels[2].captions


def test_by_name_it_is_the_bundled_one() -> None:
    assert Emoji().opens(FOLDER)
