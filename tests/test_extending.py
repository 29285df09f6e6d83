"""Every block of ``docs/contributing.md``, run as it stands there, from outside the package."""

from __future__ import annotations

import importlib
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import riemann_unlearn as ru
from riemann_unlearn.cli import main
from riemann_unlearn.data import SOURCES, Dataset
from riemann_unlearn.evaluation import MEASURES
from riemann_unlearn.models import FAMILIES
from riemann_unlearn.report import write_report
from riemann_unlearn.spaces import SPACES
from riemann_unlearn.unlearning import METHODS
from tests.conftest import make_model

PAGE = Path(__file__).parents[1] / "docs" / "contributing.md"
BLOCKS = {
    title: code
    for title, code in re.findall(
        r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S
    )
}
REGISTRIES = (METHODS, SPACES, MEASURES, SOURCES, FAMILIES)

Walk = Callable[..., types.ModuleType]


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch, world: Dataset, tmp_path: Path) -> Walk:
    """Runs the block under a heading as a module of its own, and forgets afterwards what it registered."""
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_entries", {name: registry[name] for name in registry})

    def run(title: str, architecture: str = "MERU") -> types.ModuleType:
        module = types.ModuleType("third_party")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        torch.manual_seed(0)
        vars(module).update(model=make_model(architecture), data=world, folder=tmp_path)
        exec(compile(BLOCKS[title], f"{PAGE.name}: {title}", "exec"), vars(module))
        return module

    return run


def test_every_block_of_the_page_is_run_here() -> None:
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```python") == 7
    tested = Path(__file__).read_text("utf-8")
    assert [title for title in BLOCKS if f'walk("{title}"' not in tested] == []


def test_a_method(walk: Walk, capsys: pytest.CaptureFixture[str]) -> None:
    mine = walk("A method")
    assert "repel" in [method.name for method in ru.list_methods()]
    assert mine.result.metrics["method"] == "repel"
    assert mine.result.metrics["settings"]["margin"] == 3.0
    assert mine.again.metrics["settings"]["margin"] == 5.0
    assert len(mine.again.history) == 2
    assert {"repel_loss", "retain_loss"} <= set(mine.result.history[0])
    ru.register(type("Gentle", (mine.Repel,), {"name": "gentle", "__module__": "third_party"})(margin=2.0))
    assert main(["list", "methods"]) == 0
    # A class has its defaults, an instance its own.
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "margin=5.0" in listed["repel"]
    assert "margin=2.0" in listed["gentle"]
    with pytest.raises(ValueError, match=r"margin must be in \[0.0, 1000.0\], got -1"):
        mine.Repel(margin=-1.0)


@pytest.mark.parametrize("architecture", ["MERU", "CLIP"])
def test_a_space(walk: Walk, architecture: str) -> None:
    mine = walk("A space", architecture)
    assert SPACES["manhattan"] is mine.Manhattan
    assert mine.mine.space.name == "manhattan"
    assert all(value == value for value in mine.result.history[-1].values())
    assert mine.result.metrics["after"]["retain"]["recall_at_1"] is not None


def test_a_measure(walk: Walk) -> None:
    mine = walk("A measure")
    assert "norms" in ru.list_measures()
    assert 0 < mine.lengths["forget"] < 10
    table = ru.report.evaluation_table({"model": "m", "forgotten": ["food-fruit"], **mine.report})
    rows = table.split("Length of the features")[1].splitlines()
    assert rows[1].split() == ["forget", f"{mine.lengths['forget']:.3f}"]
    # An instance goes where its name goes, registered or not.
    same = ru.evaluate(mine.model, mine.data, forget="owl", audit="full", measures=[mine.Norms()])
    assert next(iter(same["full_audit"])) == "norms"
    figure = mine.Norms().figure(mine.report["full_audit"]["norms"])
    assert figure.axes[0].get_title() == "Length of the features"


def test_data_of_one_level_and_of_four(walk: Walk, tmp_path: Path) -> None:
    mine = walk("Data of one level, of four, of any number")
    assert {"digits", "cats", "captions"} <= set(ru.list_datasets())
    assert list(mine.one.metrics["after"]["retain"]["levels"]) == ["digit"]
    assert mine.one.metrics["after"]["forget"]["parent_accuracy"] is None
    assert list(mine.four.metrics["after"]["retain"]["levels"]) == ["species", "genus", "family", "order"]
    assert [level.name for level in ru.data.load("cats").taxonomy.levels][1] == "genus"
    one, four = (ru.report.metrics_table(result.metrics) for result in (mine.one, mine.four))
    labels = [line.split("  ")[0] for line in four.split("\n\n")[1].splitlines()[2:]]
    assert labels == [
        "accuracy (genus)",
        "recall@1 (species)",
        "recall@5 (species)",
        "accuracy (family)",
        "accuracy (order)",
    ]
    assert "held-out images" in four
    assert "held-out images  " not in one
    assert "not measured: " in one
    assert list(mine.free.metrics["after"]["retain"]["levels"]) == ["caption"]
    for name, forget in (("digits", "three"), ("cats", "lion"), ("captions", "two boats in the fog")):
        ru.unlearn(
            mine.model,
            name,
            forget=forget,
            settings={"steps": 1},
            output=tmp_path / name,
            progress=False,
        )
        ru.evaluate(mine.model, name, forget=forget, audit="full")
        assert write_report(tmp_path / name).is_file()


@pytest.mark.parametrize("architecture", ["MERU", "CLIP"])
def test_a_family_of_models(walk: Walk, architecture: str) -> None:
    """Whichever model the reader has: MERU's configuration has keys of its own."""
    mine = walk("A family of models", architecture)
    assert FAMILIES["Judge"] is mine.Judge
    assert mine.result.metrics["model"] == "Lifted"
    assert mine.loaded.space.min_radius == {"MERU": 0.1, "CLIP": 0.2}[architecture]
    for name, report in mine.reports.items():
        loaded = ru.load(mine.folder / name)
        assert loaded.name == name
        assert report["retain"]["accuracy"] is not None
        output = loaded(torch.rand(2, 3, 16, 16), loaded.tokenize(["owl", "duck"]))
        by_space = ru.losses.ContrastiveLoss()(
            output["image_features"], output["text_features"], space=loaded.space
        )
        assert torch.equal(ru.losses.ContrastiveLoss()(**output), by_space)
    assert {name: mine.reports["Lifted"][name] for name in ("forget", "retain")} == {
        name: mine.result.metrics["after"][name] for name in ("forget", "retain")
    }
    assert mine.trained.scalars()["c"] != 1.0


def test_a_term_of_hac(walk: Walk) -> None:
    mine = walk("A term of HAC")
    assert mine.result.metrics["method"] == "inward-hac"
    assert mine.result.metrics["settings"]["inward"] == 0.5
    weights = {"alpha", "beta", "gamma", "omega", "eta", "entailment_weight", "inward"}
    assert set(mine.InwardHAC().weights()) == weights
    assert all(record["inward_loss"] > 0 for record in mine.result.history)
    assert {"norm_loss", "cone_exit_loss", "contrastive_loss"} <= set(mine.result.history[0])


def test_an_option(walk: Walk) -> None:
    mine = walk("An option")
    assert mine.from_the_shell.patience == mine.from_yaml.patience == 5
    assert "--patience" in mine.parser.format_help()
    assert "evaluations without gain" in mine.parser.format_help()
    assert mine.from_yaml.to_mapping()["patience"] == 5
    with pytest.raises(ValueError, match="--patience must be a whole number, at least 1"):
        mine.MyRun.parse("patience", "0")
    with pytest.raises(ValueError, match="did you mean 'patience'"):
        mine.MyRun.from_mapping({"forget": ["owl"], "patiences": 5})


@pytest.mark.parametrize(
    "package", ["data.sources", "evaluation.measures", "models", "spaces", "unlearning.methods"]
)
def test_a_file_in_a_room_is_found_by_itself(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = importlib.import_module(f"riemann_unlearn.{package}")
    (tmp_path / "a_new_file.py").write_text("here = True\n", "utf-8")
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    # The room's own code once more, with one file more in it.
    exec(Path(str(room.__file__)).read_text("utf-8"), {"__name__": room.__name__, "__path__": room.__path__})
    assert sys.modules.pop(f"{room.__name__}.a_new_file").here
