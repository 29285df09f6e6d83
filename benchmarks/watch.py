"""What ``diagnostics.watch`` costs: its part of a training step of points on ``Lorentz``, and of unlearning.

    python -m benchmarks.watch [--rows 2048] [--dim 64] [--steps 200]

*points* is a step of Riemannian Adam on the distances of a table of points to their targets. *unlearning* is
a step of the default method on the bundled model, as :func:`riemann_unlearn.unlearn` takes it. The watch is
timed inside the step; the figure is its share of the whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import geoopt
import torch

import riemann_unlearn as ru
from riemann_unlearn.diagnostics import Watch, watch
from riemann_unlearn.training import callbacks
from riemann_unlearn.unlearning import Problem, RunConfig, create_method
from riemann_unlearn.unlearning.api import _Run


class Timed:
    """A watch whose looks are timed."""

    def __init__(self, watcher: Watch) -> None:
        self.watcher, self.seconds = watcher, 0.0
        for name in ("step", "tangents"):
            setattr(watcher, name, self._timed(getattr(watcher, name)))

    def _timed(self, function: Callable) -> Callable:
        def timed(*arguments: object) -> object:
            started = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - started
            return result

        return timed


def share(step: Callable[[], object], timed: Timed, steps: int) -> tuple[float, float]:
    """Milliseconds a step, and the part of them that the watch takes."""
    for _ in range(2):
        step()
    timed.seconds, timed.watcher.steps = 0.0, 0
    started = time.perf_counter()
    for _ in range(steps):
        step()
    whole = time.perf_counter() - started
    return 1e3 * whole / steps, timed.seconds / whole


def points(rows: int, dim: int) -> tuple[Callable[[], object], Timed]:
    torch.manual_seed(0)
    manifold = ru.Lorentz()
    parameter = geoopt.ManifoldParameter(manifold.random_normal(rows, dim).detach(), manifold=manifold)
    goal = manifold.random_normal(rows, dim).detach()
    optimizer = ru.optim.RiemannianAdam([parameter], lr=1e-3)
    timed = Timed(watch([parameter]))

    def step() -> None:
        optimizer.zero_grad()
        manifold.dist(parameter, goal).sum().backward()
        optimizer.step()
        timed.watcher.step()

    return step, timed


def unlearning() -> tuple[Callable[[], object], Timed]:
    config = RunConfig(forget=["food-fruit"])
    dataset, model = ru.data.load(config.data), ru.load(config.model)
    method = create_method(config.method)
    problem = Problem(model, dataset, dataset.taxonomy.select(config.forget))
    driver = _Run(problem, method, config, None).driver(method)
    (watcher,) = (callback.watch for callback in driver.callbacks if isinstance(callback, callbacks.Watch))
    return driver.take_step, Timed(watcher)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200, help="of points; a tenth of it of unlearning")
    options = parser.parse_args()
    print(f"torch {torch.__version__}  geoopt {geoopt.__version__}  threads {torch.get_num_threads()}")
    for name, case, steps in (
        ("points", points(options.rows, options.dim), options.steps),
        ("unlearning", unlearning(), max(20, options.steps // 10)),
    ):
        milliseconds, part = share(*case, steps)
        print(f"{name:12s} {milliseconds:8.2f} ms a step, {100 * part:.2f} % of it the watch")


if __name__ == "__main__":
    main()
