"""Forgetting in an index of cached embeddings: seconds, and what is still found.

    python -m benchmarks.index --pairs 100000 --width 128

The pairs are made up: 1,000 concepts at radius about 1.5, each with its texts and images around it on the
hyperboloid. Ten concepts are forgotten. Measured are whole calls of ``unlearn_index``, its retrieval measures
before and after included.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F

CONCEPTS, FORGOTTEN = 1000, 10


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", nargs="+", type=int, default=[100_000])
    parser.add_argument("--width", type=int, default=128, help="dimension D of the tangent space")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)

    import riemann_unlearn as ru
    from riemann_unlearn.unlearning.index import unlearn_index

    manifold = ru.Lorentz(k=1.0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, float32\n")
    print("| pairs | forgotten | seconds | MiB at the peak | forget recall@1 | retain recall@1 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count in options.pairs:
        generator = torch.Generator().manual_seed(0)
        centres = 1.5 * F.normalize(torch.randn(CONCEPTS, options.width, generator=generator), dim=1)
        concept = torch.arange(count) % CONCEPTS
        spread = 0.5 / options.width**0.5
        texts = centres[concept] + spread * torch.randn(count, options.width, generator=generator)
        images = texts + 0.5 * spread * torch.randn(count, options.width, generator=generator)
        points = [manifold.expmap0(F.pad(side, (1, 0))) for side in (images, texts)]
        forget = concept < FORGOTTEN
        started = time.perf_counter()
        result = unlearn_index(*points, forget, manifold=manifold, steps=options.steps)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cells = [
            " → ".join(
                f"{100 * result.metrics[when][group]['image_to_text_recall_at_1']:.1f}"
                for when in ("before", "after")
            )
            for group in ("forget", "retain")
        ]
        print(f"| {count:,} | {int(forget.sum()):,} | {seconds:.1f} | {peak:.0f} | {cells[0]} | {cells[1]} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
