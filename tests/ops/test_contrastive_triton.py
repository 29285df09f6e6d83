"""The GPU's implementation: compiled where there is a GPU, else by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.test_contrastive import FORGET, IDS, B, batch, error, exact, gradients, leaves, total

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
kernels = pytest.importorskip("riemann_unlearn.ops.contrastive.triton")


def run(
    x: Tensor,
    y: Tensor,
    tau: Tensor,
    c: Tensor | None,
    forget: Tensor | None,
    ids: Tensor | None,
    offset: int,
) -> tuple[kernels.Statistics, list[Tensor]]:
    """Statistics, and the gradients of :func:`total`."""
    moved = [None if t is None else t.to(DEVICE) for t in (x, y, tau, c, forget, ids)]
    x, y, tau, c, forget, ids = moved
    one = torch.ones((), dtype=torch.float64, device=DEVICE)
    problem = kernels.Problem(x, y, tau, one if c is None else c, forget, ids, offset, c is not None)
    found = kernels.forward(problem)
    outputs = [t.detach().requires_grad_() for t in found[:4]]
    of = torch.autograd.grad(total(kernels.Statistics(*outputs, *found[4:])), outputs, allow_unused=True)
    result = kernels.backward(problem, found, of)
    kept = result[:3] if c is None else result
    return kernels.Statistics(*(t.cpu() for t in found)), [g.cpu() for g in kept]


@pytest.mark.parametrize("masks", ["none", "forget", "both"])
@pytest.mark.parametrize("c", [0.7, None])
def test_float64_is_exact_with_every_mask(
    c: float | None, masks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BAND", 48)
    monkeypatch.setattr(kernels, "BLOCK", 32)
    forget = None if masks == "none" else FORGET
    ids = IDS if masks == "both" else None
    sides = [side.double() for side in batch("random", 1.0)]
    extra = [torch.tensor(7.0).double(), None if c is None else torch.tensor(c).double()]
    references = leaves(*sides, *extra)
    want = exact(*references, forget, ids)
    found, got = run(*sides, *extra, forget, ids, 0)
    for mine, theirs in zip(found[:5], want, strict=True):
        assert torch.allclose(mine, theirs.double(), rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(got, gradients(total(want), references), strict=True):
        assert error(mine, theirs) < 1e-11


@pytest.mark.parametrize("radius", [1e-6, 0.1, 1.0, 3.0, 20.0, 50.0, 300.0])
def test_float32_is_right_for_random_features_at_every_radius(radius: float) -> None:
    sides, tau, c = batch("random", radius), torch.tensor(10.0), torch.tensor(0.7)
    references = leaves(*sides, tau)
    want = total(exact(*references, c, FORGET, IDS))
    found, got = run(*sides, tau, c, FORGET, IDS, 0)
    assert error(total(found), want) < 1e-5
    for mine, theirs in zip(got, gradients(want, references), strict=False):
        assert error(mine, theirs) < 1e-4


@pytest.mark.parametrize(
    "precision",
    [
        "high",
        pytest.param(
            "medium",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no product of bfloat16"),
            ],
        ),
    ],
)
def test_less_precision_is_there_for_the_asking(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bfloat16's eight bits a cosine keeps some 2^-8; nothing is lost of the matched pairs."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    sides, tau = batch("random", 1.0), torch.tensor(10.0)
    references = leaves(*sides, tau)
    want = exact(*references, None, FORGET, IDS)
    found, got = run(*sides, tau, None, FORGET, IDS, 0)
    assert torch.allclose(found.matched, want.matched, rtol=1e-6)
    assert error(total(found), total(want)) < 1e-2
    assert error(got[0], gradients(total(want), references)[0]) < 1e-2


@pytest.mark.parametrize(("rows", "columns", "inner"), [(1, 1, 1), (70, 130, 34), (129, 5, 65)])
def test_products_of_every_shape_and_stride(rows: int, columns: int, inner: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, out = (
        torch.randn(shape, generator=generator, device="cpu").to(DEVICE)
        for shape in ((rows, inner), (columns, inner), (rows, columns))
    )
    want = out.double() + a.double() @ b.double().mT
    assert torch.allclose(kernels._multiply(a, b.mT, out.clone(), accumulate=True).double(), want, atol=1e-5)
    turned = kernels._multiply(b, a.mT, torch.empty(columns, rows, device=DEVICE))
    assert torch.allclose(turned.double(), (want - out).mT, atol=1e-5)


@pytest.mark.parametrize("radius", [0.0, 1.0, 10.0, 50.0])
def test_collapsed_features_stay_finite(radius: float) -> None:
    found, got = run(*batch("collapsed", radius), torch.tensor(10.0), torch.tensor(0.7), FORGET, IDS, 0)
    assert all(t.isfinite().all() for t in (*found, *got))


def test_rectangles() -> None:
    x, y = (side.double() for side in batch("random", 1.0))
    tau, c = torch.tensor(7.0).double(), torch.tensor(0.7).double()
    whole, _ = run(x, y, tau, c, FORGET, IDS, 0)
    part = kernels.forward(
        kernels.Problem(*(t.to(DEVICE) for t in (x[30:70], y, tau, c, FORGET, IDS)), 30, True)
    )
    assert torch.allclose(part.rows.cpu(), whole.rows[30:70])
    assert torch.allclose(part.matched.cpu(), whole.matched[30:70])
    assert part.columns.shape == (B,)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_the_operator_runs_on_a_gpu_without_waiting_for_it() -> None:
    from riemann_unlearn.losses import HyperbolicAlignmentCalibration
    from riemann_unlearn.ops import backend, contrastive

    assert backend("cuda") == "triton"
    sides = [side.cuda() for side in batch("random", 1.0)]
    inputs = leaves(*sides, torch.tensor(7.0).cuda(), torch.tensor(0.7).cuda())
    forget, ids, hac = FORGET.cuda(), IDS.cuda(), HyperbolicAlignmentCalibration()

    def value() -> Tensor:
        loss = hac(*inputs[:2], forget, logit_scale=inputs[2], c=inputs[3], caption_ids=ids)
        return loss + total(contrastive(*inputs, forget=forget, caption_ids=ids))

    gradients(value(), inputs)  # compiled and timed
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = gradients(value(), inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(g.isfinite().all() for g in got)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_a_step_can_be_captured_in_a_cuda_graph() -> None:
    from riemann_unlearn.ops import contrastive

    sides = [side.cuda() for side in batch("random", 1.0)]
    inputs = leaves(*sides, torch.tensor(7.0).cuda(), torch.tensor(0.7).cuda())
    forget, ids = FORGET.cuda(), IDS.cuda()

    def step() -> list[Tensor]:
        value = total(contrastive(*inputs, forget=forget, caption_ids=ids))
        return [value.detach(), *gradients(value, inputs)]

    want = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, want, strict=True))
