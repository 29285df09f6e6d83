"""One run in several processes: the same losses, gradients and figures as in one, and an end for all."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import riemann_unlearn as ru
from riemann_unlearn import data, processes
from riemann_unlearn.cli import main
from riemann_unlearn.evaluation import features as encoding
from riemann_unlearn.models import save_model
from riemann_unlearn.runs import RunDirectory
from riemann_unlearn.training import Callback, Driver, Towers, TrainConfig
from riemann_unlearn.training import train as train_model
from riemann_unlearn.training.towers import check_parts
from riemann_unlearn.unlearning import GradientMethod, Problem, create_method
from riemann_unlearn.unlearning.problem import ForgetAndRetain
from tests.conftest import make_model, model_config

# Forks of the test's own process: others would take longer to import torch than to do what is asked of them.
CONTEXT = multiprocessing.get_context("fork")
LONGEST = 300
"""Seconds until a test gives up; a process that waits for one that died would wait for hours."""

Work = Callable[[Path, Path], Any]


def together(size: int, work: Work, world: Path, folder: Path) -> list[int | None]:
    """Do ``work`` in some processes, each of which may write to the folder; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    members = [
        CONTEXT.Process(target=_member, args=(r, size, port, work, world, folder)) for r in range(size)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(LONGEST)
    hanging = [member for member in members if member.exitcode is None]
    for member in hanging:
        member.kill()
    assert not hanging, "a process waits for another"
    return [member.exitcode for member in members]


def _member(rank: int, size: int, port: int, work: Work, world: Path, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for name in ("stdout", "stderr"):
        setattr(sys, name, (folder / f"{name}-{rank}").open("w"))
    code = 0
    if work in COMMANDS:
        code = work(world, folder)
    else:
        _inside(work, world, folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _inside(work: Work, world: Path, folder: Path) -> None:
    with processes.joined():
        torch.save(work(world, folder), folder / f"result-{processes.count()}-{processes.rank()}.pt")


def results(size: int, folder: Path) -> list[Any]:
    return [torch.load(folder / f"result-{size}-{rank}.pt", weights_only=True) for rank in range(size)]


class Stop(Callback):
    """Ctrl-C in all processes after some steps, or the sudden end of one of them."""

    def __init__(self, step: int, killed: int | None = None) -> None:
        self.step, self.killed = step, killed

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        if driver.step == self.step:
            if self.killed is None:
                raise KeyboardInterrupt
            if processes.rank() == self.killed:
                os._exit(9)


def gradients(world: Path, folder: Path) -> dict[str, list[torch.Tensor]]:
    """Of the first step of methods that differ in what they ask of a batch: the loss, and its gradient."""
    dataset, found = data.load(world), {}
    for name in ("tilt", "hac", "l1-sparse", "random-captions"):
        towers = Towers(micro_batch=2)
        problem = Problem(make_model("MERU"), dataset, dataset.taxonomy.select(["food-fruit"]), towers)
        method = create_method(name)
        assert isinstance(method, GradientMethod)
        moved, losses = method.parameters(problem.model), _Losses()
        # 11 rows, of which no number of processes has an equal share.
        batches, objective = ForgetAndRetain(problem, 4, 7, seed=0), method.objective(problem)
        standing = torch.optim.SGD(moved, lr=0.0)
        Driver(batches, objective, standing, parameters=moved, steps=1, callbacks=[losses]).run()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in moved]
        found[name] = [torch.tensor(losses.values, dtype=torch.float64), *grads]
    return found


class _Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def stepped(self, driver: Driver, record: dict[str, Any]) -> None:
        self.values.append(record["loss"])


def features(world: Path, folder: Path) -> list[torch.Tensor]:
    """Of images and captions in chunks, some processes having one more than others."""
    model, dataset = make_model("CLIP"), data.load(world)
    before = encoding.CHUNK, encoding.IMAGES
    encoding.CHUNK = encoding.IMAGES = 3
    try:
        images = encoding.encode_images(model, dataset.seen.images)
        return [images, encoding.encode_texts(model, ["a", "b", "c", "d"])]
    finally:
        encoding.CHUNK, encoding.IMAGES = before


def whole_run(world: Path, folder: Path, name: str = "whole", **options: Any) -> list[dict[str, Any]]:
    model = make_model("MERU")
    asked: dict[str, Any] = {
        "forget": "food-fruit",
        "method": "hac",
        "settings": {"steps": 4, "learning_rate": 1e-3},
    }
    asked |= {"forget_batch": 4, "retain_batch": 7, "saliency": 0.5, "progress": False}
    result = ru.unlearn(model, data.load(world), output=folder / name, **(asked | options))
    return [{**result.metrics, "seconds": 0}, *result.history]


def interrupted_run(world: Path, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="interrupted after 2 of 4 steps"):
        whole_run(world, folder, "parts", callbacks=[Stop(2)])


def bereaved_run(world: Path, folder: Path) -> str:
    with pytest.raises(processes.Lost, match="another process of the run has ended") as lost:
        whole_run(world, folder, "bereaved", callbacks=[Stop(2, killed=1)])
    return str(lost.value)


def training(world: Path, folder: Path) -> list[torch.Tensor]:
    config = TrainConfig(data=str(world), epochs=2, batch_size=7, warmup_epochs=1)
    model = train_model(model_config("CLIP"), config, folder / f"train-{processes.count()}", progress=False)
    return list(model.state_dict().values())


def refusals(world: Path, folder: Path) -> list[str]:
    """What one process cannot do is said by all of them, and a GPU is nobody's alone."""
    said = []
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "file").touch()
    with processes.joined():  # once more: the group is there, and stays
        assert processes.count() == 2
    normalizing = make_model("CLIP")
    normalizing.add_module("norm", torch.nn.BatchNorm1d(2))
    for work in (
        lambda: RunDirectory.claim(folder / "taken", {}),
        lambda: processes.own_device(torch.device("cuda", 7)),
        lambda: check_parts(normalizing, micro_batch=None),
    ):
        try:
            work()
        except ValueError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def command(world: Path, folder: Path) -> int:
    arguments = ["--model", str(folder / "model.safetensors"), "--data", str(world), "--forget", "food-fruit"]
    steps = ["--method", "hac", "--steps", "2", "--forget-batch", "4", "--retain-batch", "4"]
    return main(["run", *arguments, *steps, "--output", str(folder / "out")])


def evaluation(world: Path, folder: Path) -> int:
    return main(["evaluate", "--model", str(folder / "out"), "--json"])


def wrong_command(world: Path, folder: Path) -> int:
    return main(["run", "--data", str(world), "--forget", "nothing-like-it", "--output", str(folder / "no")])


COMMANDS = (command, evaluation, wrong_command)


@pytest.mark.parametrize("size", [2, 4])
def test_loss_and_gradient_of_every_method_are_those_of_one_process(
    size: int, world_path: Path, tmp_path: Path
) -> None:
    assert together(size, gradients, world_path, tmp_path) == [0] * size
    alone = gradients(world_path, tmp_path)
    for found in results(size, tmp_path):
        assert found.keys() == alone.keys()
        for name, (loss, *grads) in alone.items():
            assert found[name][0].tolist() == pytest.approx(loss.tolist(), rel=1e-6)
            largest = max(float(grad.abs().max()) for grad in grads)
            for grad, other in zip(grads, found[name][1:], strict=True):
                assert float((grad - other).abs().max()) < 1e-6 * largest, name


def test_features_are_those_of_one_process_to_the_bit(world_path: Path, tmp_path: Path) -> None:
    assert together(4, features, world_path, tmp_path) == [0] * 4
    for found in results(4, tmp_path):
        for one, other in zip(features(world_path, tmp_path), found, strict=True):
            assert torch.equal(one, other)


def test_a_run_is_the_run_of_one_process_and_goes_on_in_any_number(world_path: Path, tmp_path: Path) -> None:
    alone = whole_run(world_path, tmp_path, "alone")
    assert together(2, whole_run, world_path, tmp_path) == [0, 0]
    found = results(2, tmp_path)
    assert together(2, interrupted_run, world_path, tmp_path) == [0, 0]
    resumed = whole_run(world_path, tmp_path, "parts", resume=True)
    for other in (*found, resumed):
        assert len(other) == len(alone) == 5
        assert other[0]["before"] == alone[0]["before"]
        for record, expected in zip(other[1:], alone[1:], strict=True):
            assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for name in ("alone", "whole", "parts"):
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert files == {"config.yaml", "history.jsonl", "metrics.json", "model.safetensors"}
    # What they have become is asked of their features: Adam makes a step of a gradient that is but rounding,
    # as that of a bias under a softmax, and such a weight does nothing.
    images = data.load(world_path).seen.images
    encoded = [
        encoding.encode_images(ru.load(tmp_path / name), images) for name in ("alone", "whole", "parts")
    ]
    for other in encoded[1:]:
        assert torch.allclose(other, encoded[0], atol=1e-4 * float(encoded[0].abs().max()))


def test_when_a_process_dies_all_end_and_say_so(world_path: Path, tmp_path: Path) -> None:
    assert together(3, bereaved_run, world_path, tmp_path)[1] == 9
    for rank in (0, 2):
        said = torch.load(tmp_path / f"result-3-{rank}.pt", weights_only=True)
        assert "a run with a checkpoint can be resumed" in said
    # The first one has kept what it had: the run goes on without the one that died.
    (record, *history) = whole_run(world_path, tmp_path, "bereaved", resume=True)
    assert record["steps"] == len(history) == 4


def test_training_is_that_of_one_process(world_path: Path, tmp_path: Path) -> None:
    assert together(2, training, world_path, tmp_path) == [0, 0]
    for one, other in zip(*results(2, tmp_path), strict=True):
        assert torch.equal(one, other)
    training(world_path, tmp_path)
    lines = [(tmp_path / f"train-{size}" / "history.jsonl").read_text().splitlines() for size in (1, 2)]
    for expected, found in zip(*(map(json.loads, each) for each in lines), strict=True):
        assert found["contrastive_name_loss"] == pytest.approx(expected["contrastive_name_loss"], rel=1e-4)


def test_what_the_first_refuses_all_refuse(world_path: Path, tmp_path: Path) -> None:
    assert together(2, refusals, world_path, tmp_path) == [0, 0]
    one, other = results(2, tmp_path)
    assert one == other
    assert "taken is not empty" in one[0]
    assert one[1] == "ValueError: each process takes a GPU of its own; ask for cuda and not for cuda:7"
    assert one[2].startswith("ValueError: several processes: norm normalizes by the statistics of the whole")


def test_the_command_line_prints_once_and_writes_once(world_path: Path, tmp_path: Path) -> None:
    save_model(make_model("MERU"), tmp_path / "model.safetensors")
    assert together(2, command, world_path, tmp_path) == [0, 0]
    assert (tmp_path / "out" / "report.html").is_file()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["steps"] == 2
    assert "Written to" in (tmp_path / "stdout-0").read_text()
    assert (tmp_path / "stdout-1").read_text() == ""
    assert together(2, evaluation, world_path, tmp_path) == [0, 0]
    assert json.loads((tmp_path / "stdout-0").read_text())["forgotten"] == ["food-fruit"]
    assert (tmp_path / "stdout-1").read_text() == ""
    assert together(2, wrong_command, world_path, tmp_path) == [2, 2]
    said = [(tmp_path / f"stderr-{rank}").read_text() for rank in range(2)]
    assert sum(words.count("nothing-like-it") for words in said) == 1


def test_alone_nothing_is_divided_and_nothing_is_told() -> None:
    rows = torch.arange(6.0).view(3, 2)
    assert processes.own_rows(rows) is rows
    assert processes.gathered(rows, 3) is rows
    assert processes.exchanged([1]) == [[1]]
    assert processes.agreed(lambda: 7) == 7
    assert processes.new("once")
    assert processes.new("once")
    processes.average([rows])
    processes.share([rows])
    assert rows[2, 1] == 5
    assert processes.own_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    with processes.joined():
        assert (processes.rank(), processes.count(), processes.first()) == (0, 1, True)


@pytest.mark.parametrize(
    ("total", "expected"), [(5, [[0, 1], [2, 3], [4, 4], [4, 4]]), (2, [[0], [1], [1], [1]])]
)
def test_every_process_has_as_many_rows_and_at_least_one(total: int, expected: list[list[int]]) -> None:
    for rank, rows in enumerate(expected):
        with processes._as(processes._Group(rank, 4, None)):
            assert processes.own_rows(torch.arange(total)).tolist() == rows
            assert processes.own_rows(torch.empty(0, 2)).shape == (0, 2)


def test_messages_are_of_one_dtype_and_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_BUCKET", 5)
    tensors = [*map(torch.zeros, (2, 3, 1)), torch.zeros(9).double()]
    sizes = [[len(tensor) for tensor in bucket] for bucket in processes._buckets(tensors)]
    assert sizes == [[2, 3], [1], [9]]


class Twins:
    """A process group of two that have the same: what the first of them hears, without a second process."""

    group = processes._Group(0, 2, torch.distributed.HashStore())  # type: ignore[attr-defined]

    def all_gather(self, parts: list[torch.Tensor], own: torch.Tensor) -> None:
        for part in parts:
            part.copy_(own)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        tensor *= 2

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        assert source == 0
        assert tensor.is_contiguous()

    def broadcast_object_list(self, said: list[Any], source: int) -> None:
        assert source == 0

    def all_gather_object(self, everyone: list[Any], own: Any) -> None:
        everyone[:] = [own, own]


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(processes, "dist", Twins())
    with processes._as(Twins.group):
        yield


def test_what_comes_back_of_a_gathered_gradient_is_its_own_share_as_often_as_there_are_processes(
    twins: None,
) -> None:
    own = torch.tensor([[1.0], [2.0]], requires_grad=True)
    everyone = processes.gathered(own, 3)
    assert everyone.flatten().tolist() == [1.0, 2.0, 1.0]
    (everyone.flatten() * torch.tensor([1.0, 10.0, 100.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    # The mean over the processes is the sum of what each one's rows give.
    assert own.grad.flatten().tolist() == [2.0, 20.0]


def test_a_mean_of_equals_is_what_they_are(twins: None) -> None:
    tensors = [torch.arange(6.0).view(2, 3).T, torch.ones(2).double()]
    processes.average(tensors)
    processes.share(tensors)
    assert tensors[0].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert tensors[1].tolist() == [1.0, 1.0]
    assert processes.exchanged("mine") == ["mine", "mine"]


def test_what_one_says_the_others_need_not(twins: None) -> None:
    assert processes.new("lost (127.0.0.1)")
    assert not processes.new("lost (127.0.0.2)")
    with processes._as(processes._Group(1, 2, None)):
        assert processes.new("lost (127.0.0.3)")

    class Gone:
        def add(self, words: str, count: int) -> int:
            raise RuntimeError("connection closed")

    with processes._as(processes._Group(1, 2, Gone())):  # rather twice than never
        assert processes.new("lost")


def test_the_others_hear_what_the_first_got_or_why_not(twins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.agreed(lambda: 7) == 7
    with pytest.raises(ValueError, match="mine"):
        processes.agreed(lambda: (_ for _ in ()).throw(ValueError("mine")))
    for said, outcome in (([7, None], 7), ([None, ValueError("its own")], None)):
        monkeypatch.setattr(
            Twins,
            "broadcast_object_list",
            lambda self, heard, source, said=said: heard.__setitem__(slice(2), said),
        )
        with processes._as(processes._Group(1, 2, None)):
            if outcome is None:
                with pytest.raises(ValueError, match="its own"):
                    processes.agreed(lambda: pytest.fail("not asked"))
            else:
                assert processes.agreed(lambda: pytest.fail("not asked")) == outcome


def test_others_that_cannot_be_reached_are_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(address: str) -> Any:
        raise RuntimeError("connection refused\nin C++")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "rendezvous", unreachable)
    refused = pytest.raises(processes.Lost, match=r"cannot go on without it \(connection refused\)")
    with refused, processes.joined():
        pytest.fail("joined nobody")


def test_the_gpu_of_a_process_is_that_of_its_place_on_its_machine(
    twins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[torch.device] = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert processes.own_device(torch.device("cuda")) == torch.device("cuda", 3)
    assert taken == [torch.device("cuda", 3)]
    assert processes.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="each process takes a GPU of its own; ask for cuda"):
        processes.own_device(torch.device("cuda", 0))


def test_a_group_that_a_program_made_is_used_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "rendezvous", lambda address: iter([(Twins.group.store, 0, 1)]))
    with processes.joined():
        assert torch.distributed.is_initialized()
        with processes.joined():
            assert processes.count() == 1
        assert torch.distributed.is_initialized()
    assert not torch.distributed.is_initialized()


def test_features_are_put_together_from_what_each_has_encoded(
    twins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three chunks the first process has the first and the last, and its twin is said to have as much."""
    monkeypatch.setattr(encoding, "CHUNK", 2)
    model = make_model("CLIP")
    with processes.alone():
        alone = encoding.encode_texts(model, ["a", "b", "c", "d", "e"])
    found = encoding.encode_texts(model, ["a", "b", "c", "d", "e"])
    assert torch.equal(found, torch.cat([alone[:2], alone[:2], alone[4:]]))
