"""What would be forgotten, and what lies just outside: by queries, by an example, by a phrase."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import riemann_unlearn as ru
from riemann_unlearn import data
from riemann_unlearn.cli import main
from riemann_unlearn.evaluation.features import encode_images, encode_texts
from riemann_unlearn.models import save_model
from riemann_unlearn.report import write_sheet
from riemann_unlearn.unlearning import outline
from tests.conftest import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise in train and val; owl/0.png stands twice."""
    path = tmp_path_factory.mktemp("outline")
    generator = torch.Generator().manual_seed(0)
    for split, each in (("train", 6), ("val", 2)):
        for label in ("owl", "cat"):
            for i in range(each):
                pixels = torch.randint(256, (16, 16, 3), generator=generator, dtype=torch.uint8)
                file = path / "set" / split / label / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.numpy()).save(file)
    save_model(make_model("CLIP"), path / "model.safetensors")
    return path


@pytest.mark.parametrize("architecture", ["CLIP", "MERU"])
def test_what_is_near_an_example_is_by_the_models_own_similarity(folder: Path, architecture: str) -> None:
    dataset, model = data.load(folder / "set"), make_model(architecture)
    example = folder / "set" / "train" / "owl" / "3.png"
    features = encode_images(model, dataset.seen.images)
    row = dataset.ids.index("train/owl/3.png")
    score = model.space.pairwise(features, features[row : row + 1])[:, 0].detach()
    threshold = float(score.sort(descending=True).values[3:5].mean())
    got = outline(model, dataset, near=[str(example)], threshold=threshold)
    assert got.chosen[:12].tolist() == (score >= threshold).tolist()
    assert torch.allclose(got.score[:12], score, atol=1e-5)
    assert "train/owl/3.png" in got.ids()
    counts = got.counts()
    assert (counts["forget"], counts["retain"]) == (4, 8)
    assert counts["forget_heldout"] + counts["retain_heldout"] == 4
    # Each threshold chooses as many as it says, and so many as are chosen are among them.
    table = got.at_thresholds()
    assert [n for _, n in table] == [1, 2, 4, 8, 12]
    for t, n in table:
        assert int((got.score[:12] >= t).sum()) == n
    inside, outside = got.shown(5)
    assert len(inside) == 4
    assert inside[-1] == row  # the last taken in come first
    assert outside == [i for i in score.argsort(descending=True).tolist() if score[i] < threshold][:5]


def test_a_phrase_is_an_example_too(folder: Path) -> None:
    dataset, model = data.load(folder / "set"), make_model("CLIP")
    with torch.no_grad():
        score = model.space.pairwise(
            encode_images(model, dataset.seen.images), encode_texts(model, ["an owl"])
        )[:, 0]
    threshold = float(score.sort(descending=True).values[5:7].mean())
    got = outline(model, dataset, near=["an owl"], threshold=threshold, forget=["train/owl/1.png"])
    wanted = score >= threshold
    wanted[dataset.ids.index("train/owl/1.png")] = True
    assert got.chosen[:12].tolist() == wanted.tolist()


def test_a_query_has_what_lies_nearest_outside(folder: Path) -> None:
    dataset, model = data.load(folder / "set"), make_model("CLIP")
    got = outline(model, dataset, forget=["owl"])
    assert got.counts() == {"forget": 6, "retain": 6, "forget_heldout": 2, "retain_heldout": 2}
    assert got.at_thresholds() == []
    features = encode_images(model, dataset.seen.images)
    own = torch.tensor(["owl" in id for id in dataset.ids[:12]])
    nearest = model.space.pairwise(features[~own], features[own]).amax(1).detach()
    assert torch.allclose(got.score[:12][~own], nearest, atol=1e-5)
    assert len(got.ids()) == 8


def test_what_cannot_be_selected_is_said(folder: Path) -> None:
    dataset, model = data.load(folder / "set"), make_model("CLIP")
    with pytest.raises(ValueError, match="nothing to select"):
        outline(model, dataset)
    with pytest.raises(ValueError, match="examples and a threshold go together"):
        outline(model, dataset, near=["owl"])
    with pytest.raises(ValueError, match="examples and a threshold go together"):
        outline(model, dataset, forget=["owl"], threshold=0.5)
    with pytest.raises(ValueError, match=r"no seen image is as near as 3; the nearest is at"):
        outline(model, dataset, near=["owl"], threshold=3)
    with pytest.raises(ValueError, match="this is every seen image"):
        outline(model, dataset, near=["owl"], threshold=-3)
    with pytest.raises(ValueError, match=r"cannot read the example gone.jpg: there is no such file"):
        outline(model, dataset, near=["gone.jpg"], threshold=0.5)
    with pytest.raises(ValueError, match=r"no seen image shows 'val/owl/1.png'"):
        outline(model, dataset, forget=["val/owl/1.png"])
    nameless = data.Dataset("x", dataset.seen, dataset.heldout)
    with pytest.raises(ValueError, match="images of x have no names"):
        outline(model, nameless, forget=["owl"]).ids()


def test_the_command_writes_a_list_that_a_run_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["select", "--data", str(folder / "set"), "--model", str(folder / "model.safetensors")]
    example = folder / "set" / "train" / "owl" / "3.png"
    files = ["--output", str(tmp_path / "list.txt"), "--preview", str(tmp_path / "sheet.png")]
    assert main([*asked, "--near", str(example), "--threshold", "0.999", *files]) == 0
    said = capsys.readouterr().out
    assert "To be forgotten: 1 seen images" in said
    assert "Other thresholds: 1 for 1, " in said
    assert f"--forget @{tmp_path}/list.txt" in said
    assert (tmp_path / "list.txt").read_text() == "train/owl/3.png\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (1100, 1000)
    result = ru.unlearn(
        make_model("CLIP"),
        folder / "set",
        forget=f"@{tmp_path}/list.txt",
        method="ac",
        settings={"steps": 1},
        progress=False,
    )
    assert result.metrics["after"]["forget"]["images"] == 1
    assert main([*asked, "--forget", "owl", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts == {
        "forget": 6,
        "retain": 6,
        "forget_heldout": 2,
        "retain_heldout": 2,
        "thresholds": [],
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--preview", "sheet.svg"], "expected a name that ends in .png"),
        (["--preview", "gone/sheet.png"], "there is no folder"),
        (["--output", "gone/list"], "there is no folder"),
        ([], "nothing to select"),
    ],
)
def test_what_could_not_be_written_is_said_first(
    folder: Path,
    option: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["select", "--data", str(folder / "set"), "--model", str(folder / "model.safetensors")]
    assert main([*asked, *option]) == 2
    assert message in capsys.readouterr().err


def test_a_sheet_is_drawn_of_images_of_any_size(tmp_path: Path) -> None:
    for label, size in (("owl", (40, 20)), ("cat", (16, 64))):
        for i in range(2):
            (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
            Image.effect_noise(size, 50 + 40 * i).save(tmp_path / "set" / label / f"{i}.png")
    dataset = data.load(tmp_path / "set")
    write_sheet(outline(make_model("CLIP"), dataset, forget=["owl"]), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
