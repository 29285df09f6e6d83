"""The benchmarks of the operators: that every peer takes its step, and that peers compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import riemann_unlearn as ru
from benchmarks import cones, contrastive, gone, hac_step, loop_step, topk, tree, unlearning
from riemann_unlearn.data import Dataset
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.unlearning.methods import create_method
from riemann_unlearn.unlearning.methods.hac import HAC
from riemann_unlearn.unlearning.methods.retrain import Retrain
from tests.unlearning.test_methods import problem, step

STEPS = {
    contrastive.step: ("floor", "ours", "plain"),
    cones.step: ("floor", "ours", "plain"),
    hac_step.step: ("contrastive", "HAC", "HAC, captions", "plain"),
    topk.step: ("floor", "ours", "ranks", "plain"),
}


@pytest.mark.parametrize(
    ("make", "peer"),
    [
        pytest.param(make, peer, id=f"{make.__module__}-{peer}")
        for make, peers in STEPS.items()
        for peer in peers
    ],
)
def test_every_peer_takes_its_step(make: Callable[..., Callable[[], Any]], peer: str) -> None:
    found = make(peer, 12, 8)()
    if peer != "floor":
        assert all(value.isfinite().all() for value in ([found] if torch.is_tensor(found) else found))


def test_the_plain_hac_of_a_whole_step_is_hac(meru: DualEncoder, world: Dataset) -> None:
    task = problem(meru, world)
    matrix = loop_step.Plain(task.model, task.dataset, task.selection)
    hac = HAC(alpha=0.3, beta=0.7, gamma=0.1, omega=0.5, eta=0.9, epsilon=0.8)
    plain, ours = (hac.objective(one)(step(one)) for one in (matrix, task))
    assert plain.keys() == ours.keys()
    for name, value in ours.items():
        torch.testing.assert_close(plain[name], value.to(plain[name].dtype), rtol=1e-4, atol=1e-5)


def test_a_run_that_is_in_the_file_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same settings: others are a line of their own, which says what is not the default."""
    seen = []

    def run(folder: Path, **asked: Any) -> dict[str, Any]:
        folder.mkdir()
        seen.append((asked["method"], asked["settings"]["steps"], asked["seed"]))
        zero_shot = {"accuracy": 0.5, "recall_at_1": 0.25, "parent_accuracy": 1.0}
        groups = {name: zero_shot for name in ("forget", "retain", "neighbours")}
        other = {name: {"forget": 0.1, "retain": 0.2} for name in ("paraphrase", "prototype")}
        times = {time: {**groups, "heldout": groups} for time in ("before", "after")}
        chance = {"accuracy": 0.25, "recall_at_1": 0.125}
        return {**asked, **times, "chance": chance, "audit": {"before": other, "after": other}}

    monkeypatch.setattr(unlearning, "_run", run)
    file = str(tmp_path / "rows.jsonl")
    arguments = ["--methods", "hac", "--concepts", "1", "--seeds", "0", "1", "--output", file]
    for more in ([], ["--seeds", "0", "1", "2"], ["--set", "steps=7"], ["--set", "steps=7"]):
        unlearning.main([*arguments, *more])
    assert seen == [("hac", 100, 0), ("hac", 100, 1), ("hac", 100, 2), ("hac", 7, 0), ("hac", 7, 1)]
    table = capsys.readouterr().out.rpartition("**Seen images**")[2]
    assert "| 1 | hac | meru-emoji | 3 | 50.0 → 50.0 ✗ | 25.0 → 25.0 | 100.0 → 100.0 |" in table
    assert "| 1 | hac (steps 7) | meru-emoji | 2 |" in table
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_oracle_is_the_last_of_its_number_of_concepts() -> None:
    rows = [{"forget": ["a"], "method": name, "settings": {}, "model": "m"} for name in ("retrain", "tilt")]
    assert [method for _, method, _ in unlearning._groups(rows)] == ["tilt", "retrain"]


def test_an_interrupted_run_goes_on(
    tmp_path: Path, meru: DualEncoder, world: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, unlearn = [], ru.unlearn

    def run(**asked: Any) -> Any:
        return unlearn(**{**asked, "model": meru, "data": world})

    def stop_once(*_: Any, folder: Path, **options: Any) -> None:
        folders.append(folder)
        if len(folders) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(ru, "unlearn", run)
    monkeypatch.setattr(Retrain, "apply", stop_once)
    arguments = ["--methods", "retrain", "--concepts", "1", "--seeds", "0"]
    arguments += ["--output", str(tmp_path / "rows.jsonl")]
    with pytest.raises(KeyboardInterrupt, match="can be resumed"):
        unlearning.main(arguments)
    assert folders[0].is_dir()
    assert unlearning.main(arguments) == 0
    assert folders == folders[:1] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("name", "limit", "worse"),
    [
        ("forget accuracy", 2.02, 2.03),
        ("their category", 85, 84.9),
        ("retain accuracy", 89, 88.9),
        ("retain recall@1", 89, 88.9),
        ("neighbours' accuracy", 87, 86.9),
        ("forget by paraphrase", 3.02, 3.03),
    ],
)
def test_bars_of_the_unlearning_benchmark(name: str, limit: float, worse: float) -> None:
    (column,) = (column for column in (*unlearning.IMAGES, *unlearning.AUDIT) if column.name == name)
    assert column.holds(90, limit, chance=1.02)
    assert not column.holds(90, worse, chance=1.02)


def test_a_shuffled_taxonomy_has_the_same_groups_of_other_concepts(world: Dataset) -> None:
    true, dealt = world.taxonomy, tree.shuffled(world.taxonomy)
    assert {level.name: sorted(level.labels) for level in dealt.levels} == {
        level.name: sorted(level.labels) for level in true.levels
    }
    assert (
        torch.bincount(dealt.ancestor(1)).sort().values.equal(torch.bincount(true.ancestor(1)).sort().values)
    )
    assert [concept.path for concept in dealt.concepts] != [concept.path for concept in true.concepts]


def test_what_a_tree_holds_is_counted(world: Dataset) -> None:
    """Two names on one ray: each is also in the other's cone."""
    names = torch.eye(8)[[0, 0, 2, 3, 4, 5, 6, 7]]
    points = (0.5 * names, torch.zeros(4, 8), torch.zeros(2, 8))
    own, wrong, anyone = tree.rows(world.taxonomy, tree.Tree(points, 0.1))[0][4:]
    assert (own, wrong, anyone) == ("100.0", f"{100 * 2 / 8 / 7:.2f}", "25.0")


def gone_row(forget: Sequence[str], method: str, found: float, settings: Any = None) -> dict[str, Any]:
    """A line of the benchmark: everything is found as often, captions find nothing."""
    retain = {"accuracy": 0.9, "recall_at_1": 0.8}
    images = 20 * len(forget)
    part = {"forget": {"accuracy": 0.0, "images": images}, "retain": retain}
    return {
        "model": "meru-emoji",
        "method": method,
        "settings": settings or {},
        "forget": list(forget),
        "seed": 0,
        "seconds": 7.0,
        "chance": {"zero_shot": {"accuracy": 0.01}},
        "audit": {
            "zero_shot": {"seen": part, "heldout": part},
            "recovery": {
                **{name: {"recall": found} for name in ("linear_probe", "knn", "prototype")},
                "images": images,
            },
            "relearning": {"shots": [0, 16], "accuracy": [found, found], "images": images},
            "membership": {"class_membership": {"auc": [found], "members": 999, "nonmembers": images}},
        },
    }


def test_the_tables_of_gone_are_of_all_ten_concepts() -> None:
    assert [len(group) for group in gone.groups(4)] == [4, 4, 2]
    method = asdict(create_method("tilt", {"steps": 7}))
    rows = [
        gone_row(group, name, found, settings)
        for group in gone.groups(5)
        for name, found, settings in (("before", 0.9, None), ("oracle", 0.2, None), ("tilt", 0.4, method))
    ]
    text = gone.tables(rows)
    assert "**meru-emoji, 5 at a time" in text
    line = next(line for line in text.splitlines() if line.startswith("| tilt (steps 7) | 0 | 200 |"))
    assert line.endswith("| hidden |")
    assert "| 0.0 [0, 2] (0.0) | 40.0 [33, 47] (20.0) |" in line
    assert "| tilt (steps 7) | 0 | +20.0 [+20, +20] |" in text
    assert "| 90.0 → 90.0 | 80.0 → 80.0 | 90.0 → 90.0 | 80.0 → 80.0 | 7 |" in text
    # Half of the concepts is no line; without an oracle the verdict is open.
    assert gone.tables(rows[:3]) == ""
    open_ = gone.tables([row for row in rows if row["method"] != "oracle"])
    assert "| cannot say |" in open_


def test_one_oracle_has_seen_none_of_the_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: Dataset, meru: DualEncoder
) -> None:
    made: list[dict[str, Any]] = []

    def run(**asked: Any) -> None:
        made.append(asked)
        if len(made) == 1:
            asked["output"].mkdir(parents=True)
            (asked["output"] / "config.yaml").touch()
            raise KeyboardInterrupt
        (asked["output"] / "metrics.json").write_text(json.dumps({"seconds": 5.0, "steps": 0}))

    audits: list[list[str]] = []

    def audit(models: Any, data: Dataset, selection: Any, **options: Any) -> dict[str, Any]:
        assert options["measures"] == gone.MEASURES
        audits.append(list(models))
        return {**{name: {"after": 1} for name in gone.MEASURES}, "chance": {}}

    monkeypatch.setattr(ru, "unlearn", run)
    monkeypatch.setattr(ru, "load", lambda name: meru)
    monkeypatch.setattr(ru.data, "load", lambda name: world)
    monkeypatch.setattr("riemann_unlearn.evaluation.full_audit", audit)
    monkeypatch.setattr(gone, "CONCEPTS", ("food-fruit", "owl"))
    asked = {"model": "m", "method": "oracle", "settings": {}, "forget": ["owl"], "seed": 3}
    with pytest.raises(KeyboardInterrupt):
        gone._audited(asked, tmp_path)
    for _ in range(2):  # the second time it is there
        row = gone._audited(asked, tmp_path)
    assert [(one["method"], one["forget"], one["seed"], one["resume"]) for one in made] == [
        ("retrain", ["food-fruit", "owl"], 3, False),
        ("retrain", ["food-fruit", "owl"], 3, True),
    ]
    assert (row["method"], row["forget"], row["seconds"]) == ("oracle", ["owl"], 5.0)
    assert row["audit"] == dict.fromkeys(gone.MEASURES, 1)
    before = gone._audited({**asked, "method": "before"}, tmp_path)
    assert len(made) == 2
    assert "seconds" not in before
    assert audits == [["after"]] * 3


def test_gone_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def audited(run: dict[str, Any], cache: Path) -> dict[str, Any]:
        made.append((run["method"], len(run["forget"])))
        return {**gone_row(run["forget"], run["method"], 0.3, run["settings"]), **run}

    monkeypatch.setattr(gone, "_audited", audited)
    arguments = ["--methods", "tilt", "--counts", "10", "--output", str(tmp_path / "rows.jsonl")]
    for more in ([], [], ["--set", "steps=7"], ["--table"]):
        assert gone.main([*arguments, *more]) == 0
    assert made == [("before", 10), ("tilt", 10), ("oracle", 10), ("tilt", 10)]
