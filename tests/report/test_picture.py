from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import riemann_unlearn as ru
from riemann_unlearn.report import picture, write_picture
from tests.conftest import make_model


def test_a_run_is_drawn(world_path: Path, tmp_path: Path) -> None:
    source = tmp_path / "tiny.safetensors"
    ru.models.save_model(make_model("MERU"), source)
    settings = {"steps": 1}
    for name, forget in (("fruit", "food-fruit"), ("owl", "owl")):
        ru.unlearn(
            source, world_path, forget=forget, settings=settings, output=tmp_path / name, progress=False
        )
        write_picture(tmp_path / name, tmp_path / f"{name}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert pixels.shape[0] > 300
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_what_is_shown_is_spread_evenly_and_not_chosen(world: ru.data.Dataset) -> None:
    shown = picture._shown(world, world.select(["food-fruit"]))
    kinds = [world.taxonomy.concepts[i].path[0] == "food-fruit" for i in shown.concept.tolist()]
    assert kinds == [True] * 3 + [False] * 4
    assert shown.sources == world.heldout.sources  # type: ignore[union-attr]


def test_long_names_are_cut() -> None:
    assert picture._short("owl") == "owl"
    assert picture._short("x" * 30) == "x" * 17 + "…"


def test_only_a_finished_run_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run: expected metrics"):
        write_picture(tmp_path, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
