"""What only a GPU can show, in at most eight minutes: its tests, tables of ops and optimizers, an unlearning.

    python -m benchmarks.gpu [--output FILE.jsonl] [--sections tests contrastive ...] [--again]

- *tests*: ``pytest -m gpu``.
- *contrastive*: value and gradients of the contrastive op against the four matrix products of the same
  precision that it is made of: no time with these products can be below theirs.
- *optimizers*: a step of our Riemannian Adam over ViT-B-32's tensors and over Lorentz tensors, and one of
  torch's fused Adam over as many Euclidean ones.
- *unlearning*: steps of HAC on a MERU with ViT-B-32's towers and random weights, on generated images, in
  float32, bfloat16 and float16, whole and in parts: milliseconds a step, images a second, the memory it took.

Each section's result is a line of the file, with the device's name, as soon as it is there: what is in the
file is not done again, so that a session that was cut off goes on where it was. Without a GPU it says so, and
ends with code 4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._rows import append, read

NO_GPU = 4
"""Exit code where there is no GPU."""
SECONDS = 480.0
"""In all; a section that would begin later is left for the next call."""
LONGEST = 240.0
"""Of the tests: kernels are compiled."""
REPEATS = 10
VIT_B_32 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
"""For a try of the script itself."""


def tests(device: torch.device) -> dict[str, Any]:
    """How the tests marked gpu end."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "--no-cov", "-q", "tests"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return {"code": None, "said": f"not done after {LONGEST:.0f} s"}
    return {"code": done.returncode, "said": "\n".join(done.stdout.splitlines()[-15:])}


def contrastive(
    device: torch.device, sizes: Sequence[int] = (1024, 4096, 16384), width: int = 512
) -> dict[str, Any]:
    """Milliseconds of the op, forward and backward, and of its four products."""
    from riemann_unlearn.losses import functional
    from riemann_unlearn.ops import contrastive as op

    rows = []
    for size in sizes:
        x, y = (torch.randn(size, width, device=device, requires_grad=True) for _ in range(2))

        def ours(x: torch.Tensor = x, y: torch.Tensor = y) -> object:
            loss = functional.contrastive(op(x / width**0.5, y / width**0.5, 20.0, 1.0), 20.0)
            return torch.autograd.grad(loss, [x, y])

        a, b = x.detach(), y.detach()
        s = a @ b.mT

        def floor(a: torch.Tensor = a, b: torch.Tensor = b, s: torch.Tensor = s) -> object:
            # The similarities, those again in the backward pass, and a gradient of either side.
            return a @ b.mT, a @ b.mT, s @ b, s.mT @ a

        for precision in ("highest", "high"):
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(precision)
            try:
                one, other = _milliseconds(ours, device), _milliseconds(floor, device)
            finally:
                torch.set_float32_matmul_precision(before)
            rows.append({"B": size, "D": width, "products": precision, "ours": one, "floor": other})
    return {"rows": rows}


def optimizers(
    device: torch.device, make: Callable[[], list[torch.Tensor]] | None = None, count: int = 256
) -> dict[str, Any]:
    """Milliseconds of a step of each optimizer."""
    import riemann_unlearn as ru
    from benchmarks.optimizer_step import lorentz, parameters, vit_b_32
    from riemann_unlearn.optim import RiemannianAdam

    rows = []
    for name, points, manifold in (
        ("ViT-B-32", (make or vit_b_32)(), None),
        (f"{count} Lorentz tensors of 64×33", lorentz(count, 64, 33), ru.Lorentz()),
    ):
        points = [tensor.to(device) for tensor in points]
        kinds: dict[str, torch.optim.Optimizer] = {
            "torch Adam, fused": torch.optim.Adam(_with_gradients(points), lr=1e-4, fused=True),
            "ours": RiemannianAdam(
                _with_gradients(points) if manifold is None else _on(parameters, points, manifold), lr=1e-4
            ),
        }
        rows += [
            {"problem": name, "optimizer": kind, "ms": _milliseconds(one.step, device)}
            for kind, one in kinds.items()
        ]
    return {"rows": rows}


def unlearning(
    device: torch.device,
    model_cfg: dict[str, Any] = VIT_B_32,
    images: int = 20_000,
    sizes: tuple[int, int] = (64, 192),
) -> dict[str, Any]:
    """What steps of HAC take on generated images, in each precision, whole and in parts."""
    from riemann_unlearn import models
    from riemann_unlearn.unlearning import Problem
    from riemann_unlearn.unlearning.methods import create_method

    dataset = generated(images, model_cfg["vision_cfg"]["image_size"])
    rows = []
    for precision in ("float32", "bfloat16", "float16"):
        for micro in (None, sum(sizes) // 4):
            torch.manual_seed(0)
            model = models.create_model({"architecture": "MERU", "model_cfg": model_cfg}).to(device).eval()
            problem = Problem(model, dataset, dataset.taxonomy.select(["thing 0"]).to(device))
            rows.append(_steps(problem, create_method("hac"), precision, micro, sizes))
            print(json.dumps(rows[-1]), flush=True)
    return {"images": len(dataset.seen), "batch": sum(sizes), "rows": rows}


SECTIONS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "tests": tests,
    "contrastive": contrastive,
    "optimizers": optimizers,
    "unlearning": unlearning,
}


def generated(count: int, size: int) -> Any:
    """Images of noise, one of ten colours each, with the colour's number for a caption."""
    from riemann_unlearn.data import Concept, Dataset, Samples, Taxonomy

    taxonomy = Taxonomy([Concept(f"thing {i}", f"thing {i}", (), ("things",)) for i in range(10)])
    generator = torch.Generator().manual_seed(0)
    # A small image each, brought to the model's size when it is drawn: 20,000 of 224 pixels are 3 GB.
    images = torch.randint(
        256, (count, 3, min(size, 64), min(size, 64)), generator=generator, dtype=torch.uint8
    )
    concept = torch.arange(count) % 10
    return Dataset(
        "generated", Samples(images, concept, torch.zeros_like(concept), ("noise",), taxonomy), None
    )


def _steps(
    problem: Any, method: Any, precision: str, micro: int | None, sizes: tuple[int, int]
) -> dict[str, Any]:
    from dataclasses import replace

    from riemann_unlearn.optim import RiemannianAdam
    from riemann_unlearn.training import Driver, History, Towers
    from riemann_unlearn.unlearning.problem import ForgetAndRetain

    towers = Towers(precision, micro)
    problem = replace(problem, towers=towers)
    model, history = problem.model, History()
    moved = method.parameters(model)
    driver = Driver(
        ForgetAndRetain(problem, *sizes, seed=0),
        method.objective(problem),
        RiemannianAdam(moved, lr=method.learning_rate),
        parameters=moved,
        steps=1 + REPEATS,
        scaler=towers.scaler(model.device),
        device=model.device,
        callbacks=[history],
    )
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    driver.take_step()
    ms = _milliseconds(driver.take_step, model.device)
    return {
        "precision": precision,
        "micro_batch": micro,
        "ms": ms,
        "images_a_second": sum(sizes) / ms * 1e3,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "loss": [history.records[0]["loss"], history.records[-1]["loss"]],
    }


def _with_gradients(points: Sequence[torch.Tensor]) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(tensor.clone()) for tensor in points]
    for p in made:
        p.grad = torch.full_like(p, 1e-2)
    return made


def _on(parameters: Any, points: list[torch.Tensor], manifold: Any) -> list[torch.nn.Parameter]:
    """As :func:`benchmarks.optimizer_step.parameters` makes them, moved with their gradients."""
    device, made = points[0].device, []
    for p in parameters([tensor.cpu() for tensor in points], manifold):
        moved = type(p)(p.detach().to(device), p.manifold)
        moved.grad = p.grad.to(device)
        made.append(moved)
    return made


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of repeated calls, each waited for."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()  # compiles kernels
    times = []
    for _ in range(REPEATS):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections that are not in the file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.jsonl"), help="one JSON line a section")
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS))
    parser.add_argument("--again", action="store_true", help="also what is in the file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("There is no GPU here: nothing was run, and what is said of GPUs stays not measured.")
        return NO_GPU
    device, started = torch.device("cuda"), time.perf_counter()
    name = torch.cuda.get_device_name(device)
    done = (
        set() if options.again else {row["section"] for row in read(options.output) if row["device"] == name}
    )
    for section in options.sections:
        if section in done:
            print(f"{section}: in {options.output} already")
            continue
        if time.perf_counter() - started > SECONDS - LONGEST * (section == "tests"):
            print(f"{section}: no time left; call this again")
            continue
        before = time.perf_counter()
        found = SECTIONS[section](device)
        seconds = round(time.perf_counter() - before, 1)
        row = {"section": section, "device": name, "torch": torch.__version__, "seconds": seconds, **found}
        append(options.output, row)
        print(json.dumps(row, indent=1), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
