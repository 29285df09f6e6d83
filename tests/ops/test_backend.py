"""Which backend serves: the records, in the order of their registration."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

import riemann_unlearn as ru
from riemann_unlearn.ops import BACKENDS, Backend, backend, ranks
from riemann_unlearn.ops.backend import FLOATS, choose, derivatives, has_triton
from tests.ops.dispatch import home


@pytest.mark.parametrize("op", ["contrastive", "cones", "topk", "ranks", "polar"])
def test_every_op_serves_every_device_and_dtype(op: str) -> None:
    for device in ("cpu", "cuda", "mps", "meta"):
        for dtype in FLOATS:
            chosen = choose(op, device, dtype)
            assert chosen.serves(device, dtype)
            assert BACKENDS[chosen.name] is chosen
            if device == "cpu":
                assert (chosen.load() is None) == (chosen.module is None)


def test_the_most_particular_is_taken() -> None:
    assert backend("cpu") == "numba"
    assert backend(torch.device("mps")) == "reference"
    assert backend("cuda") == ("triton" if has_triton() else "reference")
    # The GPU's cones are kernels of float32; the compiled passes are of float32 on a CPU.
    assert choose("cones", "cuda", torch.float64).kind == "vectors"
    assert choose("polar", "cpu", torch.float64).load() is None
    assert choose("polar", "cpu", torch.float16).load() is None
    assert derivatives("contrastive", "cpu", torch.float32) == 1
    assert derivatives("contrastive", "mps", torch.float32) == 2
    assert derivatives("ranks", "cpu", torch.float32) == 0


def test_what_nothing_serves_is_said() -> None:
    with pytest.raises(ValueError, match=r"no backend of 'sums' serves features of torch.float32 on 'cpu'"):
        choose("sums", "cpu", torch.float32)


def test_a_third_partys_is_preferred_once_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ModuleType("my_ranks")
    mine.__dict__["ranks"] = lambda queries, bank, own, root, hyperbolic: torch.full_like(own, 7)
    monkeypatch.setitem(sys.modules, "my_ranks", mine)
    monkeypatch.setattr(BACKENDS, "_entries", dict(BACKENDS))
    x: Tensor = torch.eye(3)
    assert ranks(x, x, torch.arange(3)).tolist() == [0, 0, 0]
    ru.register(Backend("ranks", "mine", "my_ranks", devices=("cpu",)))
    try:
        assert ranks(x, x, torch.arange(3)).tolist() == [7, 7, 7]
    finally:
        home.choose.cache_clear()
