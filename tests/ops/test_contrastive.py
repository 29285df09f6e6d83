"""The contrastive op against a plain computation in float64 whose every distance is elementwise."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from riemann_unlearn.geometry import tangent
from riemann_unlearn.ops import Contrastive, backend, contrastive, workers
from riemann_unlearn.ops.contrastive import layout, op, reference, tiled
from riemann_unlearn.ops.contrastive.layout import Fate
from tests.ops.dispatch import force, home

B, D = 96, 32


@pytest.fixture(params=["numba", "tiled"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who does what is between the products: compiled code, or torch."""
    if request.param == "tiled":
        force(monkeypatch, contrastive="tiled", polar="torch")
    return str(request.param)


def use_tiles(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    for name in ("ROWS", "ROWS_OF_TORCH"):
        monkeypatch.setattr(layout, name, rows)
    for reader in (layout, tiled):
        monkeypatch.setattr(reader, "COLUMNS", columns)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def directions(count: int, number: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, D, generator=seed(number)), dim=-1)


FORGET = torch.rand(B, generator=seed(9)) < 0.3
IDS = torch.randint(0, 20, (B,), generator=seed(10))


def batch(kind: str, radius: float) -> tuple[Tensor, Tensor]:
    """Two sides of B pairs, float32."""
    if kind == "random":
        spread = 0.5 + torch.rand(B, 1, generator=seed(3))
        return directions(B, 1) * radius * spread, directions(B, 2) * radius
    if kind == "collapsed":
        v = (directions(1, 1) * radius).expand(B, D)
        return v.clone(), v.clone()
    spread = {"clustered": 1e-2, "tight": 1e-5}[kind]
    centres = directions(8, 1)[torch.randint(0, 8, (B,), generator=seed(4))]
    sides = (centres + spread * torch.randn(B, D, generator=seed(k)) / D**0.5 for k in (5, 6))
    first, second = (radius * side for side in sides)
    return first, second


def exact(
    x: Tensor, y: Tensor, scale: Tensor, c: Tensor | None, forget: Tensor | None, ids: Tensor | None
) -> Contrastive:
    """In float64, distances from differences, masks by their definition."""
    x, y = x.double(), y.double()
    if c is None:
        s = torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(y, dim=-1).mT
    else:
        s = -tangent.dist(x[:, None], y[None], c)
    count = len(x)
    own = torch.eye(count, dtype=torch.bool)
    same = own if ids is None else ids[:, None] == ids
    drop = torch.zeros(count, dtype=torch.bool) if forget is None else forget
    retained = ~drop[:, None] & ~drop & (own | ~same)
    logits = scale * s
    negatives = drop[:, None] & drop & ~same
    return Contrastive(
        s.diagonal(),
        logits.masked_fill(~(retained | drop[:, None]), -math.inf).logsumexp(1),
        logits.masked_fill(~(retained | drop), -math.inf).logsumexp(0),
        torch.where(negatives, s, 0.0).sum() / negatives.sum().clamp(min=1),
        negatives.sum(),
    )


def total(found: Contrastive) -> Tensor:
    """Something like a loss, in which no two entries have the same weight."""
    weights = (1 + torch.rand(3, B, generator=seed(7)).double()) / B
    matched, rows, columns = (w[: len(v)] * v for w, v in zip(weights, found[:3], strict=True))
    return -2 * matched.sum() + rows.sum() + columns.sum() + 0.3 * found.negative


def leaves(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.clone().requires_grad_() for t in tensors]


def gradients(value: Tensor, inputs: Sequence[Tensor | None]) -> list[Tensor]:
    return list(torch.autograd.grad(value, [t for t in inputs if t is not None]))


def error(got: Tensor, want: Tensor) -> float:
    size = want.double().norm().item()
    difference = (got.double() - want.double()).norm().item()
    return difference / size if size else difference


@pytest.mark.parametrize("scale", [10.0, 100.0])
@pytest.mark.parametrize(
    ("kind", "radius"),
    [
        *(("random", r) for r in (1e-6, 0.1, 1.0, 3.0, 8.0, 20.0, 50.0, 300.0)),
        *(("clustered", r) for r in (0.3, 1.0, 3.0, 8.0)),
        *(("tight", r) for r in (1.0, 3.0, 8.0)),
        *(("collapsed", r) for r in (0.0, 1.0, 10.0, 50.0)),
    ],
)
def test_float32_is_right_wherever_the_features_lie(
    kind: str, radius: float, scale: float, passes: str
) -> None:
    sides = batch(kind, radius)
    inputs, references = (leaves(*sides, torch.tensor(scale), torch.tensor(0.7)) for _ in range(2))
    got = total(contrastive(*inputs, forget=FORGET, caption_ids=IDS))
    want = total(exact(*references, FORGET, IDS))
    assert error(got, want) < 1e-5
    # The reference takes the gradient of c, of third order in r, as a difference of terms of first order.
    cancels = 8 * torch.finfo(torch.float64).eps / radius**2 if radius else 0.0
    for mine, theirs in zip(gradients(got, inputs), gradients(want, references), strict=True):
        assert mine.isfinite().all()
        assert error(mine, theirs) < 1e-4 + (cancels if theirs.ndim == 0 else 0.0)


@pytest.mark.parametrize("masks", ["none", "forget", "ids", "both", "all"])
@pytest.mark.parametrize("c", [0.7, None])
def test_float64_is_exact_with_every_mask(
    c: float | None, masks: str, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiles(monkeypatch, 17, 29)
    forget = {"none": None, "ids": None, "all": torch.ones(B, dtype=torch.bool)}.get(masks, FORGET)
    ids = IDS if masks in ("ids", "both") else None
    sides = [side.double() for side in batch("random", 1.0)]
    extra = [torch.tensor(7.0).double(), None if c is None else torch.tensor(c).double()]
    inputs, references = leaves(*sides, *extra), leaves(*sides, *extra)
    found = contrastive(*inputs, forget=forget, caption_ids=ids)
    want = exact(*references, forget, ids)
    for mine, theirs in zip(found, want, strict=True):
        assert torch.allclose(mine, theirs.double(), rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients(total(found), inputs), gradients(total(want), references), strict=True):
        assert error(mine, theirs) < 1e-11


@pytest.mark.parametrize("c", [0.7, None])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_tiles_of_every_kind_agree(
    c: float | None, masked: bool, threads: int, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near, far and ordinary rows in one batch, in tiles so small that each kind of tile occurs."""
    monkeypatch.setattr(workers, "count", lambda: threads)
    monkeypatch.setattr(layout, "WORTH_WORKERS", 0)
    use_tiles(monkeypatch, 8, 16)
    radii = torch.repeat_interleave(torch.tensor([0.5, 2.0, 9.0, 45.0]), B // 4)[:, None]
    x, y = directions(B, 1) * radii, directions(B, 2) * radii.roll(5, 0)
    x[::7] = y[::7] * (1 + 1e-4)
    y[3::7] = x[4::7][: len(y[3::7])]
    forget, ids = (FORGET, IDS) if masked else (None, None)
    tau, curvature = torch.tensor(60.0), None if c is None else torch.tensor(c)
    inputs, references = leaves(x, y, tau, curvature), leaves(x, y, tau, curvature)
    found = contrastive(*inputs, forget=forget, caption_ids=ids)
    want = total(exact(*references, forget, ids))
    assert error(total(found), want) < 1e-5
    for mine, theirs in zip(gradients(total(found), inputs), gradients(want, references), strict=True):
        assert error(mine, theirs) < 1e-4
    if c is not None and not masked:
        problem = layout.Problem(x, y, tau.double(), curvature.double(), forget, ids, 0, True)
        plan = op.implementation("contrastive", x).forward(problem).plan
        assert set(plan[:, 0].tolist()) == set(Fate)


@pytest.mark.parametrize("c", [0.7, None])
@pytest.mark.parametrize("masked", [False, True])
def test_the_processes_of_a_distributed_run_add_up(c: float | None, masked: bool) -> None:
    """Local rows against all columns: rows are those of the whole, columns combine by log-sum-exp."""
    x, y = (side.double() for side in batch("random", 1.0))
    masks = {"forget": FORGET, "caption_ids": IDS} if masked else {}
    whole = contrastive(x, y, 7.0, c, **masks)
    parts = [contrastive(x[k : k + 32], y, 7.0, c, offset=k, **masks) for k in (0, 32, 64)]
    assert torch.allclose(torch.cat([p.rows for p in parts]), whole.rows)
    assert torch.allclose(torch.cat([p.matched for p in parts]), whole.matched)
    assert torch.allclose(torch.stack([p.columns for p in parts]).logsumexp(0), whole.columns)
    weighted = sum(p.negative * p.pairs for p in parts)
    assert torch.allclose(weighted, whole.negative * whole.pairs)


@pytest.mark.parametrize("c", [0.7, None])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("offset", [0, 20])
def test_the_reference_gives_the_same(c: float | None, masked: bool, offset: int) -> None:
    x, y = (side.double() for side in batch("random", 1.0))
    masks = {"forget": FORGET, "caption_ids": IDS} if masked else {}
    x = x[:40].requires_grad_()
    found, want = (give(x, y, 7.0, c, offset=offset, **masks) for give in (contrastive, reference))
    for mine, theirs in zip(found, want, strict=True):
        assert torch.allclose(mine, theirs)
    for mine, theirs in zip(gradients(found.rows.sum(), [x]), gradients(want.rows.sum(), [x]), strict=True):
        assert torch.allclose(mine, theirs)


def test_gradients_match_differences() -> None:
    x, y = (side[:6, :8].double() for side in batch("random", 1.0))
    forget, ids = torch.arange(6) < 3, torch.tensor([0, 1, 2, 3, 4, 4])

    def value(x: Tensor, y: Tensor, scale: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return contrastive(x, y, scale, c, forget=forget, caption_ids=ids)[:4]

    scalars = [torch.tensor(v).double() for v in (3.0, 0.7)]
    assert torch.autograd.gradcheck(value, leaves(x, y, *scalars))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
def test_torch_finds_nothing_wrong_with_the_operator() -> None:
    x, y = (side[:12] for side in batch("random", 1.0))
    arguments = (*leaves(x, y, torch.tensor(5.0), torch.tensor(1.0)), FORGET[:12], IDS[:12], 0, True)
    results = torch.library.opcheck(op._forward, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_it_compiles_into_one_graph() -> None:
    sides = [side[:12] for side in batch("random", 1.0)]

    def value(x: Tensor, y: Tensor) -> Tensor:
        found = contrastive(x, y, 5.0, 1.0, forget=FORGET[:12])
        return found.rows.sum() + found.columns.sum() + found.negative

    eager, compiled = leaves(*sides), leaves(*sides)
    graph = torch.compile(value, fullgraph=True, backend="aot_eager")
    want, got = value(*eager), graph(*compiled)
    assert torch.equal(got, want)
    for mine, theirs in zip(gradients(got, compiled), gradients(want, eager), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype: torch.dtype) -> None:
    x, y = (side.to(dtype) for side in batch("random", 1.0))
    want = contrastive(x.float(), y.float(), 10.0, 1.0)
    inputs = leaves(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = contrastive(*inputs, 10.0, 1.0)
    assert torch.equal(found.rows, want.rows)
    assert all(g.dtype == dtype for g in gradients(found.rows.sum(), inputs))


def test_small_and_odd_batches() -> None:
    for count in (1, 2, 3):
        x, y = (side[:count].double() for side in batch("random", 1.0))
        found, want = (
            contrastive(x, y, 5.0, 1.0),
            exact(x, y, torch.tensor(5.0), torch.tensor(1.0), None, None),
        )
        assert torch.allclose(found.rows, want.rows)
    empty = torch.zeros(0, D, requires_grad=True)
    found = contrastive(empty, empty, 5.0, 1.0)
    assert found.rows.shape == (0,)
    assert torch.autograd.grad(found.rows.sum() + found.negative, empty)[0].shape == (0, D)


def test_a_missing_number_stays_missing() -> None:
    x, y = batch("random", 1.0)
    x[5] = math.nan
    found = contrastive(x, y, 5.0, 1.0)
    assert found.rows[5].isnan()
    assert found.columns.isnan().all()
    assert found.rows[:5].isfinite().all()


def test_memory_is_linear_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the op has more elements than the features or a tile."""
    use_tiles(monkeypatch, 16, 16)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))
            return out

    x, y = (torch.cat([side, 1.1 * side]) for side in batch("random", 1.0))
    problem = layout.Problem(x, y, torch.tensor(5.0), torch.tensor(1.0), None, None, 0, True)
    with Watch():
        found = tiled.forward(problem)
        tiled.backward(problem, found, (found.matched, found.rows, found.columns, found.negative))
    assert len(x) ** 2 > 2 * len(x) * (D + 2)
    assert max(sizes) == len(x) * (D + 2)


def test_where_there_are_no_kernels_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (side.double() for side in batch("random", 1.0))
    want = contrastive(x, y, 5.0, 1.0, forget=FORGET)
    force(monkeypatch, contrastive="reference")
    for mine, theirs in zip(contrastive(x, y, 5.0, 1.0, forget=FORGET), want, strict=True):
        assert torch.allclose(mine, theirs)


def test_bad_arguments_are_refused() -> None:
    x, y = batch("random", 1.0)
    with pytest.raises(ValueError, match=r"\(N, D\) and \(M, D\), got \(96, 32\) and \(96, 31\)"):
        contrastive(x, y[:, 1:], 1.0)
    with pytest.raises(ValueError, match="rows 1 to 97"):
        contrastive(x, y, 1.0, offset=1)
    with pytest.raises(ValueError, match=r"forget must be a bool tensor of shape \(96,\)"):
        contrastive(x, y, 1.0, forget=torch.ones(96))
    with pytest.raises(ValueError, match="caption_ids must be an integer tensor"):
        contrastive(x, y, 1.0, caption_ids=torch.ones(96))
    with pytest.raises(ValueError, match="c must be positive, got 0"):
        contrastive(x, y, 1.0, 0.0)
    with pytest.raises(TypeError, match="floating-point"):
        contrastive(x.long(), y, 1.0)


def test_without_numba_torch_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    home.has_numba.cache_clear()
    home.choose.cache_clear()
    try:
        assert backend("cpu") == "tiled"
        x, y = batch("random", 1.0)
        assert contrastive(x, y, 5.0, 1.0).rows.isfinite().all()
    finally:
        home.has_numba.cache_clear()
        home.choose.cache_clear()


@pytest.mark.parametrize("passes", ["numba"], indirect=True)
def test_the_compiled_functions_are_right_to_rounding(passes: str) -> None:
    """Cephes' polynomials are within two units of the last place; four of 2^-23 for what is around them."""
    kernels = pytest.importorskip("riemann_unlearn.ops.contrastive.passes")
    x = torch.linspace(-86.9, 87.9, 4001)
    found = torch.tensor([kernels._exp(v) for v in x.numpy()])
    assert torch.allclose(found.double(), x.double().exp(), rtol=2.0**-21, atol=0)
    t = torch.logspace(-30, 30, 4001)
    found = torch.tensor([kernels._log1p(v) for v in t.numpy()])
    assert torch.allclose(found.double(), t.double().log1p(), rtol=2.0**-21, atol=0)
    assert math.isnan(kernels._exp(x.numpy().dtype.type(math.nan)))


@pytest.mark.parametrize("c", [0.7, None])
def test_features_across_their_storage_are_as_good(c: float | None, passes: str) -> None:
    x, y = batch("random", 1.0)
    inputs, turned = leaves(x, y), leaves(x.T.contiguous(), y.T.contiguous())
    want = total(contrastive(*inputs, 5.0, c, forget=FORGET))
    got = total(contrastive(turned[0].T, turned[1].T, 5.0, c, forget=FORGET))
    assert torch.equal(got, want)
    for mine, theirs in zip(gradients(got, turned), gradients(want, inputs), strict=True):
        assert torch.equal(mine.T, theirs)


def test_a_missing_number_stays_missing_among_cosines(passes: str) -> None:
    x, y = batch("random", 1.0)
    x[5] = math.nan
    found = contrastive(x, y, 5.0)
    assert found.rows[5].isnan()
    assert found.columns.isnan().all()
    assert found.rows[:5].isfinite().all()
