"""Membership inference: can one tell that the forgotten images were in the training set?

Members are the seen images of the forgotten, non-members its held-out ones; an attack gives each image a
score that should be higher for a member. How well it tells them apart is the AUC (0.5 is a guess), and,
because an attacker who accuses is only believed if seldom wrong, the true-positive rate at 1 % false
positives (Carlini et al. 2022, arXiv 2112.03570; a guess is 0.01). Intervals are 95 % bootstrap ones over
images. Where the held-out images differ in kind (another vendor's drawings), every model, trained on the
forgotten or not, shows a difference: read an AUC against the *oracle's*, not against 0.5.

- *confidence* (Yeom et al. 2018, arXiv 1709.01604): the logit of the model's probability of the right name
  among all names, log p/(1-p).
- *likelihood_ratio*: the same less that of a reference model that never saw the image, here the retrained
  oracle: the attack of Carlini et al. with one shadow model, also called difficulty calibration (Watson et
  al. 2022, arXiv 2111.08440). Needs an oracle.
- *classifier* (CMIA of Wang et al. 2024, arXiv 2406.03603, after Jia et al. 2023, arXiv 2304.04934): the
  largest probability that a linear probe, fit on the retained features, gives any class.
- *encoder* (EMIA: Liu et al. 2021, EncoderMI, arXiv 2108.11023, threshold variant): the mean pairwise
  cosine of the features of several random views; an encoder holds what it was trained on steadier.
- *class_membership*: was the *class* in the training set? Members are held-out images of retained classes,
  non-members those of the forgotten; the score is the largest probability of any label of the level that
  probes ask at. Before, the
  forgotten class is as familiar as any (0.5); above the oracle's AUC it stands out as erased.

``nonmember_rate``, for the first, third and fourth: the threshold that best tells retained seen from retained
held-out images calls this share of the forgotten seen images "not a member" (the "MIA efficacy" of Jia et
al.). Higher is more forgotten; the oracle's is the mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.data.augment import random_view
from riemann_unlearn.evaluation.features import CHUNK, encode_images
from riemann_unlearn.evaluation.intervals import separation
from riemann_unlearn.evaluation.measures.base import Measure, interval, missing, percent
from riemann_unlearn.evaluation.probes import linear_probe
from riemann_unlearn.evaluation.subject import Part, Subject, evenly
from riemann_unlearn.registry import register

Scores = dict[str, Tensor]
_CALIBRATED = ("confidence", "classifier", "encoder")


@register
@dataclass(frozen=True)
class Membership(Measure):
    """Every attack on one model."""

    name: ClassVar[str] = "membership"
    title: ClassVar[str] = "Membership inference"
    reading: ClassVar[str] = (
        "AUC [95 % interval]; true-positive rate at 1 % false positives; share of the forgotten called "
        "non-members. Read against the retrained model."
    )
    guess: ClassVar[str] = "AUC: 0.5; true-positive rate: 0.01"
    paper: ClassVar[str] = (
        "Yeom et al. 2018, arXiv 1709.01604; Carlini et al. 2022, arXiv 2112.03570; Wang et al. 2024, arXiv "
        "2406.03603; Liu et al. 2021, arXiv 2108.11023"
    )
    order: ClassVar[int] = 70
    packages: ClassVar[tuple[str, ...]] = ("sklearn",)

    views: int = 5
    most_viewed: int = 100
    """Images of either kind of which views are made, and of which the threshold is found."""
    most_scored: int = 2000
    """Images of either kind whose confidence is asked for."""
    resamples: int = 1000

    def on(self, subject: Subject) -> str:
        """Both parts: the one holds the members, the other the non-members."""
        return f"{subject.seen.what} (members) and {subject.test.what} (non-members)"

    def unmet(self, subject: Subject, references: Mapping[str, Subject]) -> str | None:
        """It needs members and non-members, of the forgotten and of the retained."""
        if subject.heldout is None:
            return "it needs held-out images: they are the non-members"
        if (reason := missing(subject.parts, retained=True)) is not None:
            return reason
        if len(torch.unique(subject.classes[subject.seen.concept[~subject.seen.forgotten]])) < 2:
            return "the retained seen images are all of one class"
        return None

    def compute(self, subject: Subject, references: Mapping[str, Subject], seed: int = 0) -> dict[str, Any]:
        """What each attack tells apart.

        For each attack ``auc`` and ``tpr`` at 1 % false positives, each as ``[value, low, high]``;
        ``nonmember_rate`` where the attack has one; and how many ``members`` and ``nonmembers`` there were
        (of ``class_membership`` its own).
        ``likelihood_ratio`` only against an oracle, of the others.
        """
        rows = _rows(subject, self.most_scored)
        attacks: dict[str, Scores] = {
            "confidence": _confidence(subject, rows),
            "classifier": _classifier(subject, rows),
            "encoder": self._encoder(subject, _rows(subject, self.most_viewed), seed),
        }
        oracle = references.get("oracle")
        if oracle is not None and oracle is not subject:
            # The oracle's features of the same rows: both subjects hold the same images in the same order.
            reference = _confidence(oracle, rows)
            attacks["likelihood_ratio"] = {k: attacks["confidence"][k] - reference[k] for k in reference}
        report: dict[str, Any] = {}
        for name, scores in attacks.items():
            report[name] = separation(scores["member"], scores["nonmember"], seed, resamples=self.resamples)
            if name in _CALIBRATED:
                report[name]["nonmember_rate"] = _nonmember_rate(scores)
        kept, gone = _class_scores(subject, rows)
        report["class_membership"] = separation(kept, gone, seed, resamples=self.resamples)
        # Other images than the attacks' above: whole classes are told apart, by what is held out of each.
        report["class_membership"] |= {"members": len(kept), "nonmembers": len(gone)}
        return {**report, "members": len(rows["member"]), "nonmembers": len(rows["nonmember"])}

    def rows(self, value: Any) -> dict[str, str]:
        """Each attack's AUC, true-positive rate, and the share it calls non-members."""
        rows = {}
        for name, attack in value.items():
            if isinstance(attack, dict):
                label = name.replace("_", " ")
                # Class membership has numbers of its own.
                of = f" of {attack.get('members', value['members'])}"
                against = f" against {attack.get('nonmembers', value['nonmembers'])}"
                rows[f"{label}: AUC"] = interval(attack["auc"]) + of + against
                rows[f"{label}: TPR at 1 % FPR"] = interval(attack["tpr"]) + of + against
                if "nonmember_rate" in attack:
                    rows[f"{label}: called non-members, %"] = percent(
                        attack["nonmember_rate"], value["members"]
                    )
        return rows

    def _encoder(self, subject: Subject, rows: Mapping[str, Tensor], seed: int) -> Scores:
        """Mean pairwise cosine of the features of random views."""
        scores = {}
        # A generator of the CPU, seeded anew for each model: all models are shown the same views.
        model, generator = subject.model, torch.Generator().manual_seed(seed)
        for name, chosen in rows.items():
            images = _part(subject, name).images(chosen)
            views = []
            for _ in range(self.views):
                view = random_view(images, model.image_size, generator, fit=model.resize)
                views.append(F.normalize(encode_images(model, view), dim=-1))
            # |Σ u|² = V + 2 Σ_{i<j} u_i·u_j for unit u, so the mean over the V (V-1) / 2 pairs is
            # (|Σ u|² - V) / (V (V-1)).
            total = torch.stack(views).sum(0).square().sum(1).double()
            scores[name] = ((total - self.views) / (self.views * (self.views - 1))).cpu()
        return scores


def _rows(subject: Subject, most: int) -> dict[str, Tensor]:
    """Rows of the forgotten and retained images of the seen and the held-out part, at most ``most`` each."""
    rows = {}
    for forgotten, names in ((True, ("member", "nonmember")), (False, ("kept", "kept_nonmember"))):
        for name in names:
            rows[name] = evenly((_part(subject, name).forgotten == forgotten).nonzero()[:, 0], most)
    return rows


def _part(subject: Subject, name: str) -> Part:
    return subject.seen if name in ("member", "kept") else subject.test


@torch.no_grad()
def _confidence(subject: Subject, rows: Mapping[str, Tensor]) -> Scores:
    """Log p/(1-p) of the right name among all names."""
    space, names, scores = subject.space, subject.captions[0].features, {}
    for name, chosen in rows.items():
        part, pieces = _part(subject, name), []
        for some in torch.split(chosen, CHUNK):
            logits = space.logits(part.features[some], names)
            own = part.concept[some][:, None]
            # log p/(1-p) = l_own - log Σ_{others} exp l, without the cancellation of 1-p near 1.
            others = logits.scatter(1, own, -torch.inf).logsumexp(1)
            pieces.append((logits.gather(1, own)[:, 0] - others).cpu())
        scores[name] = torch.cat(pieces)
    return scores


def _classifier(subject: Subject, rows: Mapping[str, Tensor]) -> Scores:
    """Largest probability of a linear probe that was fit on the retained seen features."""
    seen = subject.seen
    kept = ~seen.forgotten
    features = torch.cat([_part(subject, name).features[chosen] for name, chosen in rows.items()])
    labels = subject.classes[seen.concept[kept]]
    # One fit for all four kinds of images: the probe is the costly part.
    probabilities = linear_probe(seen.features[kept], labels, features).amax(1)
    return dict(zip(rows, torch.split(probabilities, [len(chosen) for chosen in rows.values()]), strict=True))


@torch.no_grad()
def _class_scores(subject: Subject, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Largest log-probability of any label, of retained and of forgotten held-out images."""
    captions = subject.captions[subject.taxonomy.grouping].features
    kept, gone = (
        subject.space.logits(subject.test.features[rows[name]], captions).log_softmax(1).amax(1)
        for name in ("kept_nonmember", "nonmember")
    )
    return kept, gone


def _nonmember_rate(scores: Scores) -> float:
    """Share of the forgotten seen images below the threshold that best parts the retained ones."""
    kept, others = scores["kept"].double(), scores["kept_nonmember"].double()
    # The accuracy changes at scores alone, so no other threshold can be better.
    thresholds = torch.cat([kept, others]).sort().values
    # Balanced accuracy of "member where score >= threshold", for every threshold at once.
    hit = 1 - torch.searchsorted(kept.sort().values, thresholds) / len(kept)
    reject = torch.searchsorted(others.sort().values, thresholds) / len(others)
    threshold = thresholds[(hit + reject).argmax()]
    return (scores["member"].double() < threshold).double().mean().item()
