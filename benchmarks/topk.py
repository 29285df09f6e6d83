"""The ten nearest of a large bank for 1,024 queries.

    python -m benchmarks.topk [--sizes 10000 100000 1000000] [--widths 512]

*floor* is the product of queries and bank in blocks, *plain* all distances by the geometry's ``cdist`` in
blocks of the bank, then torch's top-k of everything; it stops at 100,000. *ranks* is the op that counts the
rows at least as near as a given one.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch.nn.functional import normalize

from benchmarks._process import arguments, each_alone, measure, report
from riemann_unlearn.geometry import tangent
from riemann_unlearn.ops import ranks, topk

QUERIES, BLOCK, K = 1024, 8192, 10

MATRIX_LIMIT = 100_000


def step(peer: str, size: int, width: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    bank = normalize(torch.randn(size, width, generator=generator), dim=-1)
    queries = normalize(torch.randn(QUERIES, width, generator=generator), dim=-1)
    if peer == "floor":
        return lambda: sum(float((queries @ block.mT)[0, 0]) for block in bank.split(BLOCK))
    if peer == "ours":
        return lambda: topk(queries, bank, K, 1.0)
    if peer == "ranks":
        own = torch.arange(QUERIES) % size
        return lambda: ranks(queries, bank, own, 1.0)
    return lambda: torch.cat([tangent.cdist(queries, b, 1.0) for b in bank.split(BLOCK)], 1).topk(
        K, largest=False
    )


def main() -> None:
    options = arguments(__doc__, (10_000, 100_000, 1_000_000), (512,))
    if options.one:
        case = json.loads(options.one)
        torch.set_num_threads(options.threads)
        peer, size, width = case["peer"], case["M"], case["D"]
        print(json.dumps(measure(step(peer, size, width), step(peer, 64, width), options.seconds)))
        return
    cases = [
        {"M": size, "D": width, "peer": peer}
        for width in options.widths
        for size in options.sizes
        for peer in ("floor", "ours", "ranks", "plain")
        if peer != "plain" or size <= MATRIX_LIMIT
    ]
    report(options, each_alone("benchmarks.topk", options, cases), ("M", "D"), "peer", "floor")


if __name__ == "__main__":
    main()
