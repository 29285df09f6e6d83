"""The GPU's cones: compiled where there is a GPU, else by Triton's interpreter."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from riemann_unlearn.ops import cones
from riemann_unlearn.ops.cones import reference
from tests.ops.dispatch import force
from tests.ops.test_cones import check_that_it_is_seen, total
from tests.ops.test_contrastive import batch, directions, error, gradients, leaves

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
triton = pytest.importorskip("triton")


@pytest.fixture
def by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, cones="triton")


@pytest.mark.usefixtures("by_triton")
@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("radius", [1e-6, 0.1, 1.0, 3.0, 10.0, 50.0, 300.0])
def test_cones_are_right_wherever_the_features_lie(kind: str, radius: float) -> None:
    sides, c = batch(kind, radius), torch.tensor(0.7)
    inputs = leaves(*(t.to(DEVICE) for t in (*sides, c)))
    references = leaves(*(side.double() for side in sides), c.double())
    found, want = cones(*inputs), reference(*references)
    for mine, theirs in zip(found, want, strict=True):
        assert torch.allclose(mine.cpu(), theirs, rtol=1e-12, atol=1e-12)
    got = gradients(total(type(found)(*(t.cpu() for t in found))), inputs)
    for mine, theirs in zip(got, gradients(total(want), references), strict=True):
        assert error(mine.cpu(), theirs) < 1e-5


@pytest.mark.usefixtures("by_triton")
def test_images_ahead_behind_beside_and_at_their_captions() -> None:
    text, beside = directions(8, 1) * 2, directions(8, 2)
    for image in (1.5 * text, 0.5 * text, -text, text.clone(), 0 * text, text + 1e-3 * beside):
        inputs = leaves(text.to(DEVICE), image.to(DEVICE), torch.tensor(1.0).to(DEVICE))
        want = reference(text.double(), image.double(), 1.0)
        found = cones(*inputs)
        assert torch.allclose(found.outside.cpu(), want.outside, atol=1e-6)
        assert all(g.isfinite().all() for g in gradients(found.outside.sum(), inputs))
    at_origin = leaves((0 * text).to(DEVICE), beside.to(DEVICE), torch.tensor(1.0).to(DEVICE))
    found = cones(*at_origin)
    assert torch.allclose(found.outside.cpu(), torch.tensor(-math.pi / 2).double())
    assert gradients(found.outside.sum(), at_origin)[0].abs().max() == 0
    assert all(len(t) == 0 for t in cones(text[:0].to(DEVICE), beside[:0].to(DEVICE), 1.0))


@pytest.mark.usefixtures("by_triton")
def test_vectors_wider_than_a_program_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from riemann_unlearn.ops.cones import triton as cones_triton

    sides = [side.to(DEVICE) for side in batch("random", 2.0)]
    inputs, again = leaves(*sides, torch.tensor(0.7)), leaves(*sides, torch.tensor(0.7))
    whole = cones(*inputs)
    monkeypatch.setattr(cones_triton, "WIDEST", 8)
    pieces = cones(*again)
    assert torch.allclose(pieces.outside, whole.outside, rtol=1e-12)
    pairs = (gradients(found.outside.sum(), given) for found, given in ((whole, inputs), (pieces, again)))
    for one, other in zip(*pairs, strict=True):
        assert torch.allclose(one, other, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.usefixtures("by_triton")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    check_that_it_is_seen(bad, DEVICE)


class Recorder:
    """A kernel that notes with which options it is launched."""

    def __init__(self, kernel: Any, seen: list[dict[str, Any]]) -> None:
        self.kernel, self.seen = kernel, seen

    def __getattr__(self, name: str) -> Any:
        part = getattr(self.kernel, name)
        return Recorder(part, self.seen) if name == "fn" else part

    def __getitem__(self, grid: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> None:
            self.seen.append(options)
            self.kernel[grid](*arguments, **options)

        return run


@pytest.mark.usefixtures("by_triton")
def test_kernels_that_take_differences_are_compiled_without_fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused x·a - y·b of equal rows is not 0. Only a GPU fuses: the option is what can be seen anywhere."""
    from riemann_unlearn.ops.cones import triton as cones_triton

    seen: list[dict[str, Any]] = []
    for name in ("_measure", "_step"):
        monkeypatch.setattr(cones_triton, name, Recorder(getattr(cones_triton, name), seen))
    text, image = (t.to(DEVICE) for t in batch("random", 1.0))
    cones(*leaves(text, image, torch.tensor(1.0, device=DEVICE))).outside.sum().backward()
    assert [options["enable_fp_fusion"] for options in seen] == [False] * 2


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from riemann_unlearn.ops.cones import triton as cones_triton
from riemann_unlearn.ops.contrastive import triton as contrastive_triton

NUMBERS = "rows columns first_own inner a_row a_inner b_inner b_column out_row"
KINDS = {"forget": "*i32", "ids": "*i64", **dict.fromkeys(NUMBERS.split(), "i32")}

def compiled(kernel, real, constants, config=None, fused=True, **kinds):
    kernel = kernel.fn if config else kernel  # what is tuned, without the tuning
    constants = {**constants, **(config.kwargs if config else {})}
    known = KINDS | kinds
    signature = {
        name: "constexpr" if name in constants else known.get(name, known.get(name.rstrip("12"), real))
        for name in kernel.arg_names
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages} if config else {}
    options |= {} if fused else cones_triton.UNFUSED
    source, hopper = ASTSource(kernel, signature, constants), GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=hopper, options=options)
    assert made.asm["cubin"]
    print(kernel.__name__)

numbers = "*fp64"
pairs = {"K": 0.2, "BLOCK": 256}
for kernel in (cones_triton._measure, cones_triton._step):
    features = dict.fromkeys(("broad", "narrow", "out", "out_narrow"), "*fp32")
    compiled(kernel, numbers, pairs, fused=False, **features)
for precision in ("tf32x3", "tf32", "bf16"):
    kernel = contrastive_triton._product
    compiled(kernel, "*fp32", {"ACCUMULATE": True, "PRECISION": precision}, kernel.configs[0])
for kernel in (contrastive_triton._reduce, contrastive_triton._differentiate):
    constants = {"HYPERBOLIC": True, "IDS": True, "BLOCK": 64}
    compiled(kernel, "*fp32", constants, kernel.configs[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="where Triton brings NVIDIA's assembler")
def test_every_kernel_compiles_for_a_gpu_that_need_not_be_there() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2 + 3 + 2
