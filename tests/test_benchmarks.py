"""The benchmarks of the operators: that every peer takes its step, and that peers compute the same."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import riemann_unlearn as ru
from benchmarks import (
    cones,
    contrastive,
    gone,
    hac_step,
    loop_step,
    minute,
    search,
    topk,
    tree,
    unlearning,
)
from riemann_unlearn.data import Dataset
from riemann_unlearn.models import DualEncoder
from riemann_unlearn.unlearning.methods import METHODS, create_method
from riemann_unlearn.unlearning.methods.hac import HAC
from riemann_unlearn.unlearning.methods.retrain import Retrain
from tests.conftest import make_model
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
    hac = HAC(alpha=0.3, beta=0.7, gamma=0.1, omega=0.5, eta=0.9)
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
    arguments = ["--methods", "hac", "--concepts", "1", "--seeds", "0", "1", "--output", file, "--defaults"]
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
    arguments += ["--output", str(tmp_path / "rows.jsonl"), "--defaults"]
    with pytest.raises(KeyboardInterrupt, match="can be resumed"):
        unlearning.main(arguments)
    assert folders[0].is_dir()
    assert unlearning.main(arguments) == 0
    assert folders == folders[:1] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_methods_are_compared_as_tuned_and_with_none_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def run(folder: Path, **asked: Any) -> dict[str, Any]:
        folder.mkdir()
        seen.append((asked["method"], asked["settings"].get("beta"), asked["settings"].get("epochs")))
        return asked

    monkeypatch.setattr(unlearning, "_run", run)
    monkeypatch.setattr(unlearning, "tables", lambda rows: str([unlearning.label(row) for row in rows]))
    found = tmp_path / "tuned.json"
    found.write_text(json.dumps({"meru-emoji": {"hac": {"beta": 0.25, "steps": 7}}}), encoding="utf-8")
    arguments = ["--concepts", "1", "--seeds", "0", "--tuned", str(found)]
    arguments += ["--output", str(tmp_path / "rows.jsonl"), "--methods", "hac"]
    with pytest.raises(SystemExit):
        unlearning.main([*arguments, "tilt"])
    assert "has no settings of tilt for meru-emoji; search for them" in capsys.readouterr().err
    unlearning.main([*arguments, "retrain"])
    assert seen == [("hac", 0.25, None), ("retrain", None, 56)]
    unlearning.main([*arguments, "tilt", "--defaults"])
    assert capsys.readouterr().out.splitlines()[-1] == "['hac']"
    unlearning.main([*arguments, "--set", "beta=0.5"])
    assert seen[-1] == ("hac", 0.5, None)
    assert capsys.readouterr().out.splitlines()[-1] == "['hac']"


@pytest.mark.parametrize("method", search.SPACES)
def test_what_is_tried_of_a_method(method: str) -> None:
    """Its defaults, then points of its space, the same ones however many are asked for."""
    tried = search.trials(method, 5, steps=7)
    assert tried[:3] == search.trials(method, 3, steps=7)
    first = {**search.settings(method), **({"steps": 7} if method != "nullspace" else {})}
    assert tried[0] == first
    for point in tried[1:]:
        create_method(method, point)
        for names, (low, high) in search.SPACES[method].items():
            assert len({point[name] for name in names.split("+")}) == 1
            assert low <= point[names.split("+")[0]] <= high
        fixed = first.keys() - {name for names in search.SPACES[method] for name in names.split("+")}
        assert all(point[name] == first[name] for name in fixed)
    name = next(iter(search.SPACES[method])).split("+")[0]
    assert len({point[name] for point in tried[1:]}) == 4


def test_every_method_but_the_oracle_is_searched() -> None:
    names = {entry.name for entry in METHODS.values() if entry.__module__.startswith("riemann_unlearn.")}
    assert names - search.SPACES.keys() == {unlearning.ORACLE}


def test_a_search_measures_what_it_did_not_use_and_goes_on_where_it_stopped(
    tmp_path: Path,
    meru: DualEncoder,
    world: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, validation = search.split(world)
    assert len(train.seen) + len(validation.seen) == len(world.seen)
    assert train.heldout is validation.heldout is None
    monkeypatch.setattr(search, "split", lambda _: (world, world))  # too few images to part
    monkeypatch.setattr(search, "CONCEPTS", ("drink", "animal-bird"))
    monkeypatch.setattr(ru, "load", lambda _: meru)
    monkeypatch.setattr(ru.data, "load", lambda _: world)
    files = ["--output", str(tmp_path / "rows.jsonl"), "--tuned", str(tmp_path / "tuned.json")]
    small = ["--steps", "1", "--batch", "2", "4", "--model", "m"]
    before = {name: value.clone() for name, value in meru.state_dict().items()}
    assert search.main(["--methods", "nullspace", "hac", "--runs", "2", *small, *files]) == 0
    assert all(value.equal(before[name]) for name, value in meru.state_dict().items())
    rows = search.read(tmp_path / "rows.jsonl")
    assert [(row["method"], row["trial"], *row["forget"]) for row in rows] == [
        (method, trial, concept)
        for trial in (0, 1)
        for method in ("nullspace", "hac")
        for concept in ("drink", "animal-bird")
    ]
    assert all(row["before"].keys() == row["after"].keys() == set(GROUPS) for row in rows)
    assert rows[0]["before"] == rows[2]["before"] == rows[4]["before"] != rows[1]["before"]
    found = json.loads((tmp_path / "tuned.json").read_text("utf-8"))
    assert found["m"].keys() == {"nullspace", "hac"}
    assert found["m"]["hac"] in [row["settings"] for row in rows]
    monkeypatch.setattr(search._Bench, "run", None)
    assert search.main(["--methods", "nullspace", "hac", "--runs", "2", *small, *files]) == 0
    assert search.main(["--table", *files]) == 0
    assert "| hac | m | 2 | learning_rate " in capsys.readouterr().out


GROUPS = ("forget", "neighbours", "retain")


def trial(number: int, concept: str, **after: float | None) -> dict[str, Any]:
    """A line of a search of one setting: accuracies after, 0.9 before, with chance at 0.1."""
    whole = {"accuracy": 0.9, "recall_at_1": 0.9, "parent_accuracy": 1.0}
    groups = {name: {**whole, **(after if name == "forget" else {})} for name in GROUPS}
    run = {"model": "m", "method": "finetune", "trial": number, "settings": {"learning_rate": float(number)}}
    run |= {"forget": [concept], "before": dict.fromkeys(GROUPS, whole), "chance": {"accuracy": 0.1}}
    return {**run, "after": groups if after else None}


def test_the_best_is_what_misses_the_fewest_points_with_every_concept() -> None:
    one, other = search.CONCEPTS
    rows = [
        trial(0, one, accuracy=0.5),
        trial(0, other, accuracy=0.1),
        trial(1, one, accuracy=0.1, parent_accuracy=0.9),
        trial(1, other, accuracy=0.1),
        trial(2, one, accuracy=0.0),  # of one concept only
        trial(3, one),  # diverged
        trial(3, other, accuracy=0.0),
    ]
    assert search.missed(rows[0]) == pytest.approx(39)  # above chance and a point
    assert search.missed(rows[2]) == pytest.approx(5)  # lost ten where five may be
    found = search.ranked(rows)["m", "finetune"]
    assert [one.settings["learning_rate"] for one in found] == [1.0, 0.0, 3.0]
    assert [one.missed for one in found] == [pytest.approx(2.5), pytest.approx(19.5), math.inf]
    assert search.tuned(rows) == {"m": {"finetune": {"learning_rate": 1.0}}}
    assert "| finetune | m | 3 | learning_rate 1 | 2.5 | 19.5 | 90.0 → 10.0 |" in search.table(rows)
    assert "| finetune | m | 1 | learning_rate 3 | inf | – | – |" in search.table(rows[-2:])
    for number, recall in ((4, 0.5), (5, 0.1)):
        rows += [trial(number, c, accuracy=0.1, recall_at_1=recall) for c in search.CONCEPTS]
        assert search.tuned(rows)["m"]["finetune"] == {"learning_rate": float(number)}


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
    assert column.missed(90, limit, chance=1.02) == 0
    assert column.holds(90, limit, chance=1.02)
    assert not column.holds(90, worse, chance=1.02)
    assert column.missed(90, worse, chance=1.02) == pytest.approx(abs(worse - limit))


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


def test_a_minutes_runs_are_kept_and_their_missed_bars_named(
    world_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model("MERU")
    ran: list[dict[str, Any]] = []

    def unlearn(_: str, **asked: Any) -> Any:
        ran.append(asked)
        return real(copy.deepcopy(model), world_path, progress=False, **asked)

    real = ru.unlearn
    monkeypatch.setattr(ru, "unlearn", unlearn)
    arguments = ["--frozen", "0.6", "--steps", "2", "--views", "0", "2", "--forget", "food-fruit"]
    arguments += ["--output", str(tmp_path / "rows.jsonl")]
    for _ in range(2):
        assert minute.main(arguments) == 0
    assert [asked["views"] for asked in ran] == [0, 2]
    row = minute.read(tmp_path / "rows.jsonl")[0]
    assert (row["forget"], row["frozen"], row["steps"]) == ("food-fruit", 0.6, 2)
    assert "forget by paraphrase" not in list(minute.missed(row))  # which is not measured there
    row["after"] = {**row["after"], "retain": {**row["before"]["retain"], "accuracy": 0.0}}
    row["before"]["retain"]["accuracy"] = 0.5
    assert "retain accuracy" in list(minute.missed(row))
    assert capsys.readouterr().out.count("| meru-emoji | 0.6 | 2 |") == 4
