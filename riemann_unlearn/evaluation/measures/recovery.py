"""Is it in the features still? The forgotten concept sought in frozen image features, without any text.

Everything is fit on seen images and scored on held-out ones. A class is a label of the level that probes ask
at, or a forgotten concept by itself (see :attr:`Subject.classes`).

- *linear probe* (Alain and Bengio 2016, arXiv 1610.01644): multinomial logistic regression over all
  classes; ``recall`` is the share of forgotten images that it classifies right. ``roc_auc`` and
  ``balanced_accuracy`` are of a second one that tells forgotten from retained, both kinds weighted alike.
- *k-NN* (Wu et al. 2018, arXiv 1805.01978): the class most frequent among the k most similar seen images.
- *prototypes* (Snell et al. 2017, arXiv 1703.05175): the nearest class mean; and with n shots of every
  forgotten class, against whole prototypes of the retained, the *prototypical relearning attack* of Ha et
  al. 2025 (arXiv 2506.01318).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from riemann_unlearn.evaluation.features import nearest
from riemann_unlearn.evaluation.intervals import mean_of_two, separation, wilson
from riemann_unlearn.evaluation.measures.base import Measure, interval, missing, percent, share
from riemann_unlearn.evaluation.probes import SHOTS, fit_regression, linear_probe, shots_figure, shots_text
from riemann_unlearn.evaluation.subject import Part, Subject
from riemann_unlearn.registry import register

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Score = Callable[[Tensor], dict[str, float | None]]


@register
@dataclass(frozen=True)
class Recovery(Measure):
    """Probes, neighbours and prototypes in frozen features."""

    name: ClassVar[str] = "recovery"
    title: ClassVar[str] = "In the features still"
    reading: ClassVar[str] = (
        "What is found in frozen image features without any text. Above the retrained model's: hidden, not "
        "gone. Below it: scattered, which an observer can see."
    )
    guess: ClassVar[str] = "1/classes; ROC-AUC, balanced accuracy: 0.5"
    paper: ClassVar[str] = (
        "Alain and Bengio 2016, arXiv 1610.01644; Wu et al. 2018, arXiv 1805.01978; Snell et al. 2017, arXiv "
        "1703.05175; Ha et al. 2025, arXiv 2506.01318"
    )
    order: ClassVar[int] = 50
    packages: ClassVar[tuple[str, ...]] = ("sklearn",)

    neighbours: int = 5
    shots: tuple[int, ...] = SHOTS
    draws: int = 5
    """Random choices of shots that a figure is the mean of."""

    def on(self, subject: Subject) -> str:
        """Held-out images, by what was fit on seen ones."""
        return f"{subject.test.what}, by what is fit on {subject.seen.what}"

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """A probe is not asked about what it was fit on, and one class needs no probe."""
        if subject.heldout is None:
            return "it needs held-out images: a probe must not be asked about what it was fit on"
        reason = missing(subject.parts)
        if reason is None and len(torch.unique(subject.classes[subject.seen.concept])) < 2:
            return "the seen images are all of one class"
        return reason

    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> dict[str, Any]:
        """What frozen features give back of the forgotten.

        ``linear_probe`` (``recall``, ``retain_accuracy``; ``roc_auc`` and ``balanced_accuracy`` as [value,
        low, high]), ``knn`` and ``prototype`` (``recall``, ``retain_accuracy``), ``few_shot_prototype``
        (``shots``, ``recall``), ``chance``: of the recalls, one over the number of classes; and how many
        forgotten ``images`` and ``retained`` ones were asked about.
        """
        seen, test, space = subject.seen, subject.test, subject.space
        # A class without a seen image cannot be predicted by anything that is fit on these, so it is no
        # choice, and chance does not count it. `own` counts among those that are left; `present` leads back.
        present, own = torch.unique(subject.classes[seen.concept], return_inverse=True)
        target = subject.classes[test.concept]

        def score(predicted: Tensor) -> dict[str, float | None]:
            hits = present[predicted] == target
            return {"recall": share(hits[test.forgotten]), "retain_accuracy": share(hits[~test.forgotten])}

        probe = linear_probe(seen.features, own, test.features).argmax(1).to(own.device)
        voters = nearest(space, test.features, seen.features, min(self.neighbours, len(seen)))
        means = space.mean(seen.features, own, len(present))
        return {
            "linear_probe": {**score(probe), **_binary_probe(seen, test, seed)},
            "knn": score(torch.mode(own[voters], dim=1).values),
            "prototype": score(nearest(space, test.features, means, 1)[:, 0]),
            "few_shot_prototype": self._few_shots(subject, own, len(present), score, seed),
            "chance": 1 / len(present),
            "images": int(test.forgotten.sum()),
            "retained": int((~test.forgotten).sum()),
        }

    def rows(self, value: Any) -> dict[str, str]:
        """Every probe's recall, and what the first two say of the retained."""
        few, probe, n, kept = (
            value[name] for name in ("few_shot_prototype", "linear_probe", "images", "retained")
        )
        told = {
            name: "–" if probe[name] is None else f"{interval(probe[name])} of {n} against {kept}"
            for name in ("roc_auc", "balanced_accuracy")
        }
        return {
            "linear probe: recall of the forgotten, %": percent(probe["recall"], n),
            "linear probe: accuracy on the retained, %": percent(probe["retain_accuracy"], kept),
            "forgotten against retained: ROC-AUC": told["roc_auc"],
            "forgotten against retained: balanced accuracy": told["balanced_accuracy"],
            "k-NN: recall of the forgotten, %": percent(value["knn"]["recall"], n),
            "prototypes: recall of the forgotten, %": percent(value["prototype"]["recall"], n),
            **{
                f"prototypes, {shots_text(shots)}: recall, %": percent(recall, n)
                for shots, recall in zip(few["shots"], few["recall"], strict=True)
            },
            "chance of a recall, %": percent(value["chance"]),
        }

    def figure(self, values: Mapping[str, Any]) -> Figure | None:
        """Recall against the number of shots."""
        few = {role: value["few_shot_prototype"] for role, value in values.items()}
        curves = {role: (value["shots"], value["recall"]) for role, value in few.items() if value["shots"]}
        if not curves:
            return None
        return shots_figure("Recall by few-shot prototypes", curves, next(iter(values.values()))["chance"])

    def _few_shots(
        self, subject: Subject, own: Tensor, count: int, score: Score, seed: int
    ) -> dict[str, Any]:
        """Recall with n shots of each forgotten class, for every n that all of them have images for."""
        features, space = subject.seen.features, subject.space
        generator = torch.Generator().manual_seed(seed)
        # Retained classes keep their whole prototypes: the attacker has no reason to spare those images.
        classes = torch.unique(own[subject.seen.forgotten])
        pools = [(own == label).nonzero()[:, 0] for label in classes]
        kept = torch.isin(own, classes, invert=True).nonzero()[:, 0]
        # As many of each class as of any other, or a figure would mix attackers of different strength.
        shots = [n for n in self.shots if n <= min(map(len, pools))]
        recalls = []
        for n in shots:
            total = 0.0
            for _ in range(self.draws):
                # The order is drawn on the CPU, so that a seed means the same on every device.
                drawn = [
                    pool[torch.randperm(len(pool), generator=generator)[:n].to(pool.device)] for pool in pools
                ]
                rows = torch.cat([kept, *drawn])
                means = space.mean(features[rows], own[rows], count)
                total += score(nearest(space, subject.test.features, means, 1)[:, 0])["recall"] or 0.0
            recalls.append(total / self.draws)
        return {"shots": shots, "recall": recalls}


def _binary_probe(seen: Part, test: Part, seed: int) -> dict[str, list[float] | None]:
    """Of a probe that tells forgotten from retained; nothing where there is nothing to tell apart."""
    # That both parts show something forgotten, unmet has seen to. Something retained they may lack.
    gone = test.forgotten.cpu()
    # One kind alone has no ROC curve, and a regression cannot be fit to it.
    if gone.all() or seen.forgotten.all():
        return {"roc_auc": None, "balanced_accuracy": None}
    regression, standardized = fit_regression(
        seen.features, seen.forgotten, test.features, class_weight="balanced"
    )
    scores = torch.from_numpy(regression.decision_function(standardized))
    # The regression says "forgotten" where its score is above 0.
    found = (scores > 0) == gone
    shares = [(found[mask].double().mean().item(), int(mask.sum())) for mask in (gone, ~gone)]
    (hit, _), (spared, _) = shares
    return {
        "roc_auc": separation(scores[gone], scores[~gone], seed)["auc"],
        "balanced_accuracy": [
            (hit + spared) / 2,
            *mean_of_two(hit, wilson(*shares[0]), spared, wilson(*shares[1])),
        ],
    }
