"""A learnable curvature in the optimizer: the points and momenta of its manifold follow it.

Losses see a Lorentz point by its space components (MERU's convention, and :class:`ru.Lorentz`'s), so the
gradient by k is taken with those fixed. A step of k therefore keeps the space components of points and of
momenta, and their times are taken anew: the point is on the new sheet and the momentum is tangent to it.
"""

from __future__ import annotations

from typing import Any

import geoopt
from torch import Tensor


def curvature_group(
    manifold: geoopt.Lorentz, *, lr: float, clamp: tuple[float, float] = (0.1, 10.0), **options: Any
) -> dict[str, Any]:
    """A parameter group for the learnable k of a manifold.

    Parameters
    ----------
    manifold : geoopt.Lorentz
        Made with ``learnable=True``.
    lr : float
        Learning rate of k.
    clamp : (float, float)
        Smallest and largest k, as multiples of its present value; MERU's are the default.
    **options
        Further options of the group.

    Returns
    -------
    dict
        To be given to an optimizer of :mod:`riemann_unlearn.optim` beside the manifold's points.

    Raises
    ------
    ValueError
        When k is not learnable, or the clamp does not hold it.

    Examples
    --------
    >>> import geoopt, torch
    >>> import riemann_unlearn as ru
    >>> manifold = ru.Lorentz(learnable=True)
    >>> start = manifold.expmap0(torch.tensor([[0.0, 3.0, 4.0]])).detach()
    >>> points = geoopt.ManifoldParameter(start, manifold)
    >>> optimizer = ru.optim.RiemannianAdam(
    ...     [{"params": [points]}, ru.optim.curvature_group(manifold, lr=0.1)], lr=0.01
    ... )
    >>> manifold.dist0(points).sum().backward()
    >>> optimizer.step()
    >>> bool(manifold.check_point_on_manifold(points)), round(manifold.k.item(), 3)
    (True, 0.9)
    """
    low, high = clamp
    if not manifold.k.requires_grad:
        raise ValueError("the manifold's k takes no gradient; make it with learnable=True")
    if not 0 < low <= 1 <= high:
        raise ValueError(f"clamp must be two factors around 1, such as (0.1, 10), got {clamp}")
    k = manifold.k.detach().item()
    return {
        "params": [manifold.k],
        "lr": lr,
        # A decay of k would draw the curvature -1/k toward minus infinity. `options` may still ask for it.
        "weight_decay": 0.0,
        "curvature_clamp": (low * k, high * k),
        **options,
    }


def follow_(points: Tensor, momenta: Tensor | None, k: Tensor) -> None:
    """Bring points and momenta onto the hyperboloid of ``k``, space components kept, in place."""
    space = points[..., 1:]
    # In float64, where squares of float32 neither overflow nor lose digits to their sum; MPS has none.
    wide = space.double() if points.device.type != "mps" else space
    time = (wide.square().sum(-1) + k.detach().to(wide)).sqrt()
    points[..., 0] = time
    if momenta is not None:
        # The time that makes it tangent: m_t p_t = (m_s, x).
        momenta[..., 0] = (wide * momenta[..., 1:]).sum(-1) / time


def scalar_k(manifold: geoopt.Lorentz, like: Tensor) -> float | Tensor:
    """K as a number on the CPU; elsewhere as a tensor, which costs no wait for the device."""
    k: Tensor = manifold.k.detach()
    return float(k) if k.device.type == "cpu" else k.to(like)
