"""What several measures share: a linear probe, and curves over the number of shots an attacker has.

It stands beside the measures' folder, so that each file in there can be taken out by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riemann_unlearn.evaluation.measures.base import ROLE_COLOURS, ROLE_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOTS = (1, 2, 4, 8, 16)
"""Images of each forgotten class that an attacker has; as many of these as every class has images for."""


def linear_probe(features: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Probabilities, shape (M, classes), that a logistic regression fit on ``features`` gives ``test``.

    On the CPU, where scikit-learn works.
    """
    regression, standardized = fit_regression(features, labels, test)
    return torch.from_numpy(regression.predict_proba(standardized))


def fit_regression(features: Tensor, labels: Tensor, test: Tensor, **options: Any) -> tuple[Any, Any]:
    """A fitted regression, and ``test`` as it must be given."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    # Fit on what the probe learns from alone: the test images must not take part in their own scaling.
    scaler = StandardScaler().fit(features.cpu())
    # C = 0.1 with unit-variance features; the probe must not fail for want of iterations.
    regression = LogisticRegression(C=0.1, max_iter=1000, tol=1e-3, **options)
    regression.fit(scaler.transform(features.cpu()), labels.cpu().numpy())
    return regression, scaler.transform(test.cpu())


def shots_text(n: int) -> str:
    """A number of shots in words."""
    return f"{n} shot" if n == 1 else f"{n} shots"


def shots_figure(
    title: str, curves: Mapping[str, tuple[list[int], list[float]]], chance: float | None
) -> Figure:
    """Shares in [0, 1] against the number of shots, which doubles from tick to tick.

    Parameters
    ----------
    title : str
    curves : mapping
        By role, the numbers of shots and the share at each; 0 shots stand left of 1.
    chance : float or None
        Drawn as a line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 2.8), layout="constrained")
    axes = figure.subplots()
    # A tick for each number, at even steps: 0 has no place on a scale of doublings.
    ticks = sorted({n for shots, _ in curves.values() for n in shots})
    for role, (shots, shares) in curves.items():
        places = [ticks.index(n) for n in shots]
        axes.plot(places, shares, "o-", color=ROLE_COLOURS[role], label=ROLE_NAMES[role], markersize=4)
    if chance is not None:
        axes.axhline(chance, color="#c2410c", linestyle="--", linewidth=1, label="chance")
    axes.set_xticks(range(len(ticks)), [str(n) for n in ticks])
    axes.set(title=title, xlabel="shots", ylim=(-0.03, 1.03))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
