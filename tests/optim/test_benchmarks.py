"""The benchmarks' own arithmetic, and the documentation's example, on a taxonomy of nine nouns."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import geoopt
import pytest
import torch
from torch import Tensor

import riemann_unlearn as ru
from benchmarks import optimizer_step, optimizers, wordnet
from riemann_unlearn.data import Dataset
from riemann_unlearn.models import DualEncoder

PARENTS = {
    "thing": [],
    "animal": ["thing"],
    "dog": ["animal"],
    "poodle": ["dog"],
    "corgi": ["dog"],
    "cat": ["animal"],
    "stone": ["thing"],
    "pet": ["thing"],
    "lassie": ["poodle", "pet"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The taxonomy in WordNet's format, with a second sense of dog, a licence and other pointers."""
    offsets = {name: 100 + index for index, name in enumerate(PARENTS)}
    lines = ["  1 This is the licence."]
    for name, parents in PARENTS.items():
        symbol = "@i" if name == "lassie" else "@"
        pointers = [f"{symbol} {offsets[p]:08d} n 0000" for p in parents] + ["~ 00000100 n 0000"]
        lines.append(
            f"{offsets[name]:08d} 03 n 01 {name.title()} 0 {len(pointers):03d} {' '.join(pointers)} | gloss"
        )
    lines.append("00000999 03 n 02 dog 1 hound 0 001 @ 00000100 n 0000 | a bad person")
    (tmp_path / "data.noun").write_text("\n".join(lines) + "\n")
    index = ["  1 This is the licence."]
    index += [f"{n} n 1 1 @ 1 0 {o:08d}" for n, o in offsets.items() if n != "dog"]
    index.append(f"dog n 2 1 @ 2 0 {offsets['dog']:08d} 00000999")
    (tmp_path / "index.noun").write_text("\n".join(index) + "\n")
    return tmp_path


def test_the_closure_has_every_ancestor(folder: Path) -> None:
    taxonomy = wordnet.closure(folder, "thing.n.01")
    pairs = {(taxonomy.names[a], taxonomy.names[b]) for a, b in taxonomy.pairs.tolist()}
    assert ("lassie.n.01", "animal.n.01") in pairs
    assert ("lassie.n.01", "pet.n.01") in pairs
    assert ("dog.n.02", "thing.n.01") in pairs
    assert len(pairs) == len(taxonomy.pairs) == 1 + 2 + 3 + 3 + 2 + 1 + 1 + 5 + 1
    inside = taxonomy.below("dog.n.01")
    assert {n for n, i in zip(taxonomy.names, inside, strict=True) if i} == {
        "dog.n.01",
        "poodle.n.01",
        "corgi.n.01",
        "lassie.n.01",
    }
    assert len(wordnet.closure(folder, "animal.n.01").names) == 6


def test_quality_is_rank_and_average_precision() -> None:
    # From node 0: its ancestors 1 and 2 are first and fourth, 3 and 4 between; from node 3, 0 is last.
    distances = torch.tensor(
        [[0.0, 1, 4, 2, 3], [1, 0, 9, 9, 9], [4, 9, 0, 9, 9], [5, 1, 2, 0, 3], [3, 9, 9, 9, 0]]
    )
    pairs = torch.tensor([[0, 1], [3, 0], [0, 2]])
    ranks = wordnet.ranks(lambda nodes: distances[nodes], pairs)
    assert ranks.tolist() == [1, 4, 3]
    mean_rank, precision = wordnet.quality(ranks, pairs)
    assert mean_rank == pytest.approx((1 + 3 + 4) / 3)
    assert precision == pytest.approx(((1 + 2 / 4) / 2 + 1 / 4) / 2)
    # Of some pairs, the others are still no wrong answers.
    assert wordnet.quality(ranks[2:], pairs[2:]) == (3, pytest.approx(1 / 3))


def test_negatives_are_no_ancestors(folder: Path) -> None:
    taxonomy = wordnet.closure(folder, "thing.n.01")
    negatives = optimizers.Negatives(taxonomy, torch.Generator().manual_seed(0))
    stones = torch.full((4,), taxonomy.names.index("stone.n.01"))
    drawn = negatives.draw(stones)
    assert drawn.shape == (4, optimizers.NEGATIVES)
    assert not (drawn == taxonomy.names.index("thing.n.01")).any()
    assert not (drawn == stones[0]).any()


@pytest.mark.parametrize("kind", ["lorentz", "poincare", "tangent"])
def test_ranking_loss_is_the_papers(folder: Path, kind: str) -> None:
    """Against the sum over pairs and negatives, one by one; with its gradient."""
    taxonomy = wordnet.closure(folder, "thing.n.01")
    vectors = torch.randn(len(taxonomy.names), 3, generator=torch.Generator().manual_seed(0)).double()
    manifold: geoopt.Manifold | None = None
    points = vectors
    on = ru.Lorentz()
    if kind != "tangent":
        manifold = on if kind == "lorentz" else geoopt.PoincareBall(torch.tensor(1.0).double())
        points = wordnet.lifted(manifold, vectors).detach().as_subclass(Tensor)
    keep = taxonomy.pairs[:, 1] != taxonomy.names.index("pet.n.01")
    nodes = torch.tensor([8, 0, 2, 3, 5])
    loss = wordnet.RankingLoss(taxonomy, manifold, keep)
    where = on.expmap0(torch.nn.functional.pad(vectors, (1, 0)))
    costs = []
    for (node, ancestor), kept in zip(taxonomy.pairs.tolist(), keep.tolist(), strict=True):
        if kept and node in nodes:
            above = taxonomy.pairs[taxonomy.pairs[:, 0] == node, 1].tolist()
            others = [ancestor] + [n for n in nodes.tolist() if n != node and n not in above]
            logits = -wordnet.LOGIT_SCALE * on.dist(where[node], where[others])
            costs.append(-logits.log_softmax(0)[0])
    torch.testing.assert_close(loss(points, nodes), torch.stack(costs).mean())
    assert torch.autograd.gradcheck(lambda p: loss(p, nodes), points.requires_grad_())


def test_nodes_far_from_all_others_have_finite_gradients(folder: Path) -> None:
    taxonomy = wordnet.closure(folder, "thing.n.01")
    vectors = (torch.eye(len(taxonomy.names)) * 15).requires_grad_()
    wordnet.RankingLoss(taxonomy, None)(vectors, torch.arange(len(taxonomy.names))).backward()
    assert torch.isfinite(vectors.grad).all()


@pytest.mark.parametrize("parameters", ["manifold", "tangent"])
@pytest.mark.parametrize("manifold", ["lorentz", "poincare"])
def test_wordnet_end_to_end(
    folder: Path, manifold: str, parameters: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--wordnet", str(folder), "--root", "thing.n.01", "--forget", "dog.n.01", "--dim", "3"]
    arguments += ["--manifold", manifold, "--parameters", parameters, "--epochs", "100", "--batch", "9"]
    arguments += ["--lr", "0.3", "--unlearn-steps", "60", "--unlearn-lr", "0.2"]
    assert wordnet.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["before"]["map"] > 0.9
    assert found["forget_pairs"] == 4
    assert found["after"]["rest_map"] > 0.85


@pytest.mark.parametrize("manifold", [ru.Lorentz(), geoopt.PoincareBall()])
def test_forgotten_pairs_end_as_far_apart_as_random_ones(folder: Path, manifold: geoopt.Manifold) -> None:
    taxonomy = wordnet.closure(folder, "thing.n.01")
    forget = taxonomy.below("dog.n.01")[taxonomy.pairs].all(1)
    node, ancestor = taxonomy.pairs[forget].T
    start = torch.randn(len(taxonomy.names), 3, generator=torch.Generator().manual_seed(0))
    points = wordnet.lifted(manifold, start)

    def share() -> float:
        """Distance of the forgotten pairs over that of their nodes from any."""
        at = points.detach()
        return float(manifold.dist(at[node], at[ancestor]).mean() / manifold.dist(at[node, None], at).mean())

    with torch.no_grad():
        points[ancestor] = manifold.expmap0(manifold.logmap0(points[ancestor]) / 4)
    before = share()
    wordnet.unlearn(taxonomy, points, forget, steps=60, lr=0.2, seed=0)
    assert before < 0.85 < 0.9 < share() < 1.1


@pytest.mark.parametrize("optimizer", ["RiemannianSGD", "RiemannianAdam"])
@pytest.mark.parametrize("parameters", ["manifold", "tangent"])
def test_an_embedding_goes_on_from_its_checkpoint(
    folder: Path, tmp_path: Path, parameters: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"epochs": 4, "batch": 4, "lr": 0.1, "seed": 0}
    options |= {"parameters": parameters, "optimizer": optimizer}
    taxonomy = wordnet.closure(folder, "thing.n.01")
    whole = wordnet.embed(taxonomy, ru.Lorentz(), 3, **options)
    checkpoint = tmp_path / "points.pt"
    write = wordnet.atomic_write

    def interrupted(path: Path, content: bytes) -> None:
        if path.exists():
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(wordnet, "atomic_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wordnet.embed(taxonomy, ru.Lorentz(), 3, **options, checkpoint=checkpoint)
    monkeypatch.undo()
    resumed = wordnet.embed(taxonomy, ru.Lorentz(), 3, **options, checkpoint=checkpoint)
    assert torch.equal(resumed, whole)


def test_the_documents_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "wordnet.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setattr(wordnet, "WORDNET", folder)
    for old, new in (
        ("mammal.n.01", "thing.n.01"),
        ("canine.n.02", "dog.n.01"),
        ("range(300)", "range(3)"),
    ):
        assert old in code
        code = code.replace(old, new)
    names: dict[str, object] = {}
    exec(code, names)
    points = names["points"]
    assert isinstance(points, geoopt.ManifoldParameter)
    assert torch.isfinite(points).all()


class Valley:
    """A problem as a user would write one."""

    name, steps = "valley", 25

    def start(self, seed: int) -> Tensor:
        return optimizers.lift(torch.full((2, 3), 0.5))

    def objective(self, seed: int) -> object:
        return lambda manifold, points: manifold.dist(points, manifold.origin(2, 4)).square().sum()

    def error(self, manifold: geoopt.Manifold, points: Tensor, seed: int) -> float:
        return float(points[:, 1:].norm())


class Wild(torch.optim.SGD):
    """An optimizer whose parameters are NaN after a step."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p.data.fill_(float("nan"))


def test_optimizers_compares_the_users_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = "tests.optim.test_benchmarks"
    arguments = ["--problems", f"{here}:Valley", "--optimizer", f"{here}:Wild", "--seeds", "2"]
    assert optimizers.main([*arguments, "--output", str(tmp_path / "rows.json")]) == 0
    table, advice = capsys.readouterr().out.split("\n\n")
    lines = table.splitlines()
    assert len(lines) == 2 + len(optimizers.CONTENDERS) + 1
    assert "| 6/6 |" in lines[-1]
    assert advice.startswith("valley: ")
    assert "Wild" in advice
    rows = {row["optimizer"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["ours: RiemannianAdam"]["error"] < optimizers.lift(torch.full((2, 3), 0.5))[:, 1:].norm() / 2
    assert rows["ours: RiemannianAdam"]["nan_runs"].startswith("0/")
    # What is in the file is not run again.
    monkeypatch.setattr(optimizers, "compare", None)
    plot = tmp_path / "curves.svg"
    assert optimizers.main([*arguments, "--output", str(tmp_path / "rows.json"), "--plot", str(plot)]) == 0
    assert capsys.readouterr().out.split("\n\n")[0] == table
    assert "valley" in plot.read_text()
    with pytest.raises(ValueError, match="module:Class"):
        optimizers.main(["--problems", "nothing"])


def test_frechet_knows_its_answer() -> None:
    problem = optimizers.Frechet()
    assert problem.error(ru.Lorentz(), problem.solve(0).float(), 0) < 1e-5


@pytest.mark.parametrize("kind", [optimizers.Meru, optimizers.Unlearning])
def test_the_problems_on_emoji(
    kind: Any, monkeypatch: pytest.MonkeyPatch, world: Dataset, meru: DualEncoder
) -> None:
    optimizers.embedded_emoji.cache_clear()
    monkeypatch.setattr(ru, "load", lambda name: meru)
    monkeypatch.setattr(optimizers, "load_data", lambda name: world)
    try:
        problem = kind()
    finally:
        optimizers.embedded_emoji.cache_clear()
    emoji = problem.emoji
    assert emoji.fruit.sum() == 3
    assert emoji.images.shape == (16, 17)
    # Captions that are where their images are find them; those that are elsewhere do not.
    own = torch.stack([emoji.images[emoji.concept == i][0] for i in range(8)])
    assert optimizers.found_first(own, own, torch.arange(8)).all()
    assert not optimizers.found_first(own, own.roll(1, 0), torch.arange(8)).any()
    points = problem.start(0).clone().requires_grad_()
    loss = problem.objective(0)(ru.Lorentz(), points)
    loss.backward()
    assert torch.isfinite(points.grad).all()
    assert points.grad.norm() > 0
    assert 0 <= problem.error(ru.Lorentz(), points.detach(), 0) <= 2


def test_a_sweep_goes_on_beyond_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer that asks for a rate of 8 gets near it; one that has no rate at all gets the six."""

    def pretend(problem: object, contender: optimizers.Contender, lr: float, seed: int) -> optimizers.Run:
        error = abs(math.log(lr / 8)) if contender.name == "wants 8" else math.inf
        return optimizers.Run([error] * optimizers.SAMPLES, 1.0, 0.0, 1.0)

    monkeypatch.setattr(optimizers, "run", pretend)
    names = ("wants 8", "is broken")
    contenders = [optimizers.Contender(name, torch.optim.SGD, ru.Lorentz) for name in names]
    rows = optimizers.compare(Valley(), contenders, range(2))
    assert [(row["lr"], row["nan_runs"]) for row in rows] == [(9.0, "0/9"), (0.003, "6/6")]


def test_step_times_are_medians_of_the_contenders() -> None:
    points = optimizer_step.lorentz(3, 4, 5)
    found = optimizer_step.measure(optimizer_step.contenders(points, "foreach", True), 0.01)
    assert list(found) == ["torch Adam, foreach", "ours", "geoopt"]
    assert all(t > 0 for t in found.values())
