"""Small problems on manifolds, and the means to run two optimizers on the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import geoopt
import torch
from torch import Tensor

import riemann_unlearn as ru

Problem = tuple[list[torch.nn.Parameter], Callable[[], Tensor]]


def lorentz_points(
    manifold: geoopt.Lorentz, count: int, dim: int, seed: int, *, radius: float | None = None
) -> Tensor:
    """Points at random directions, at standard normal or at one radius in units of √k."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    if radius is not None:
        v = torch.nn.functional.normalize(v, dim=-1) * radius * manifold.k.item() ** 0.5
    c = 1 / manifold.k.item()
    return ru.geometry.to_ambient(ru.geometry.expmap0(v, c), c).to(manifold.k.dtype)


def attraction(manifold: geoopt.Manifold, starts: Sequence[Tensor], targets: Sequence[Tensor]) -> Problem:
    """Parameters at ``starts``, and the sum of their squared distances to ``targets``."""
    params = [geoopt.ManifoldParameter(start.clone(), manifold) for start in starts]

    def loss() -> Tensor:
        terms = [manifold.dist(p, t).square().sum() for p, t in zip(params, targets, strict=True)]
        return torch.stack(terms).sum()

    return params, loss


def run(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def constraint_error(points: Tensor, k: float) -> float:
    """Largest |<p,p> + k| relative to p_t², in units of the dtype's roundoff."""
    wide = points.detach().double()
    error = (wide[..., 1:].square().sum(-1) + k - wide[..., 0].square()).abs() / wide[..., 0].square()
    return float(error.max()) / (torch.finfo(points.dtype).eps / 2)
