"""What several rooms of the test suite share: a small world, and a small model of each geometry."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from riemann_unlearn import data, models
from riemann_unlearn.data.sources.shards import write_shard

# Tests run side by side; each keeps to one core.
torch.set_num_threads(1)

WORLD = {
    "Food & Drink": {"food-fruit": ["red apple", "banana", "cherries"], "drink": ["hot beverage"]},
    "Animals & Nature": {"animal-bird": ["owl", "duck"], "plant-flower": ["tulip", "rose"]},
}
COLOURS = ["red", "gold", "maroon", "brown", "grey", "olive", "pink", "purple"]


def write_world(folder: Path) -> Path:
    """A dataset of eight concepts in two seen styles and a held-out one, as shards."""
    folder.mkdir(exist_ok=True)
    concepts = [(n, s, c) for c, subs in WORLD.items() for s, names in subs.items() for n in names]
    for style, split in (("plain", "seen"), ("dark", "seen"), ("other", "heldout")):
        samples = []
        for number, (name, subcategory, category) in enumerate(concepts):
            image = Image.new("RGB", (16, 16), COLOURS[number])
            if style != "plain":
                image.paste("black" if style == "dark" else "white", (0, 0, 16, 4))
            encoded = io.BytesIO()
            image.save(encoded, "WEBP", quality=85, method=6)
            about = {"name": name, "subcategory": subcategory, "category": category, "keywords": ["thing"]}
            samples.append((f"{style}-{number}", encoded.getvalue(), about))
        (folder / f"{style}-{split}.tar.gz").write_bytes(write_shard(samples))
    return folder


def model_config(architecture: str) -> dict[str, object]:
    """A transformer of one layer on either side; the vocabulary is the bundled one."""
    return {
        "architecture": architecture,
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
            "text_cfg": {
                "context_length": 16,
                "vocab_size": 6870,
                "width": 32,
                "heads": 2,
                "layers": 1,
                "tokenizer_kwargs": {"bpe_path": "bpe_emoji.txt.gz"},
            },
        },
    }


@pytest.fixture(scope="session")
def world_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("data") / "world")


@pytest.fixture(scope="session")
def world(world_path: Path) -> data.Dataset:
    return data.load(world_path)


@pytest.fixture(scope="session")
def emoji() -> data.Dataset:
    """The bundled data; seconds to load, so once for all tests of a process."""
    return data.load("emoji")


@pytest.fixture(params=["MERU", "CLIP"])
def model(request: pytest.FixtureRequest) -> models.DualEncoder:
    return make_model(request.param)


@pytest.fixture
def meru() -> models.DualEncoder:
    return make_model("MERU")


def make_model(architecture: str) -> models.DualEncoder:
    torch.manual_seed(0)
    return models.create_model(json.loads(json.dumps(model_config(architecture)))).eval()
