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
  non-members those of the forgotten; the score is the largest probability of any subcategory. Before, the
  forgotten class is as familiar as any (0.5); above the oracle's AUC it stands out as erased.

``nonmember_rate``, for the first, third and fourth: the threshold that best tells retained seen from retained
held-out images calls this share of the forgotten seen images "not a member" (the "MIA efficacy" of Jia et
al.). Higher is more forgotten; the oracle's is the mark.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.data import ImageTextData
from riemann_unlearn.data.augment import random_view
from riemann_unlearn.evaluation.encoded import Encoded, evenly
from riemann_unlearn.evaluation.encoding import CHUNK, encode_images
from riemann_unlearn.evaluation.recovery import linear_probe

VIEWS = 5
MOST_VIEWED = 100
"""Images of either kind of which views are made, and of which the threshold is found."""
MOST_SCORED = 2000
"""Images of either kind whose confidence is asked for."""
FALSE_POSITIVE_RATE = 0.01
RESAMPLES = 1000
Scores = dict[str, Tensor]
_CALIBRATED = ("confidence", "classifier", "encoder")


def membership(subject: Encoded, oracle: Encoded | None = None, seed: int = 0) -> dict[str, Any] | None:
    """Every attack on one model.

    Parameters
    ----------
    subject : Encoded
    oracle : Encoded, optional
        The same data seen by the retrained oracle; the reference of the likelihood ratio.
    seed : int
        Decides the views and the resampling.

    Returns
    -------
    dict
        For each attack ``auc`` and ``tpr`` at 1 % false positives, each as ``[value, low, high]``;
        ``nonmember_rate`` where the attack has one; and how many ``members`` and ``nonmembers`` there were.
        None where either are lacking.
    """
    if subject.heldout is None:
        return None
    rows = _rows(subject, MOST_SCORED)
    if not all(map(len, rows.values())):
        return None
    attacks: dict[str, Scores] = {
        "confidence": _confidence(subject, rows),
        "classifier": _classifier(subject, rows),
        "encoder": _encoder(subject, _rows(subject, MOST_VIEWED), seed),
    }
    if oracle is not None and oracle is not subject:
        reference = _confidence(oracle, rows)
        attacks["likelihood_ratio"] = {k: attacks["confidence"][k] - reference[k] for k in reference}
    found: dict[str, Any] = {}
    for name, scores in attacks.items():
        found[name] = separation(scores["member"], scores["nonmember"], seed)
        if name in _CALIBRATED:
            found[name]["nonmember_rate"] = _nonmember_rate(scores)
    found["class_membership"] = separation(*_class_scores(subject, rows), seed)
    return {**found, "members": len(rows["member"]), "nonmembers": len(rows["nonmember"])}


def separation(members: Tensor, nonmembers: Tensor, seed: int = 0) -> dict[str, list[float]]:
    """AUC and TPR at 1 % FPR of a score, each with its 95 % bootstrap interval.

    Parameters
    ----------
    members, nonmembers : Tensor, shape (N,), (M,)
        Scores; higher should mean member. A tie counts half in the AUC and not at all in the TPR.
    seed : int
        Decides the resampling.

    Examples
    --------
    >>> import torch
    >>> separation(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0]))["auc"]
    [1.0, 1.0, 1.0]
    """
    members, nonmembers = members.double().cpu(), nonmembers.double().cpu()
    n, m = len(members), len(nonmembers)
    generator = torch.Generator().manual_seed(seed)
    order = torch.sort(nonmembers).values
    auc, tpr = [_auc(members, order)], [_tpr(members, nonmembers)]
    for _ in range(RESAMPLES):
        some = members[torch.randint(n, (n,), generator=generator)]
        others = torch.sort(nonmembers[torch.randint(m, (m,), generator=generator)]).values
        auc.append(_auc(some, others))
        tpr.append(_tpr(some, others))
    return {name: _interval(torch.stack(values)) for name, values in (("auc", auc), ("tpr", tpr))}


def _auc(members: Tensor, nonmembers: Tensor) -> Tensor:
    """Share of pairs in which the member scores higher; ``nonmembers`` are sorted."""
    lower = torch.searchsorted(nonmembers, members) + torch.searchsorted(nonmembers, members, right=True)
    return lower.double().mean() / (2 * len(nonmembers))


def _tpr(members: Tensor, nonmembers: Tensor) -> Tensor:
    """Share of members above the lowest threshold that at most 1 % of the non-members exceed."""
    allowed = int(FALSE_POSITIVE_RATE * len(nonmembers))
    threshold = torch.topk(nonmembers, allowed + 1).values[-1]
    return (members > threshold).double().mean()


def _interval(values: Tensor) -> list[float]:
    """The first value, and the 2.5 % and 97.5 % quantiles of the rest."""
    low, high = torch.quantile(values[1:], torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return [values[0].item(), low, high]


def _rows(subject: Encoded, most: int) -> dict[str, Tensor]:
    """Rows of the forgotten and retained images of the seen and the held-out part, at most ``most`` each."""
    assert subject.heldout is not None
    rows = {}
    for forgotten, seen, heldout in ((True, "member", "nonmember"), (False, "kept", "kept_nonmember")):
        for name, part in ((seen, subject.seen), (heldout, subject.heldout)):
            mask = subject.selection.concepts[part.concept] == forgotten
            rows[name] = evenly(mask.nonzero()[:, 0], most)
    return rows


def _part(subject: Encoded, name: str) -> tuple[ImageTextData, Tensor]:
    if name in ("member", "kept"):
        return subject.seen, subject.seen_features
    assert subject.heldout is not None
    assert subject.heldout_features is not None
    return subject.heldout, subject.heldout_features


@torch.no_grad()
def _confidence(subject: Encoded, rows: dict[str, Tensor]) -> Scores:
    """Log p/(1-p) of the right name among all names."""
    model, scores = subject.model, {}
    for name, chosen in rows.items():
        data, features = _part(subject, name)
        found = []
        for some in torch.split(chosen, CHUNK):
            logits = model.logit_scale.exp() * model.similarity(features[some], subject.names)
            own = data.concept[some].to(logits.device)[:, None]
            others = logits.scatter(1, own, -torch.inf).logsumexp(1)
            found.append((logits.gather(1, own)[:, 0] - others).cpu())
        scores[name] = torch.cat(found)
    return scores


def _classifier(subject: Encoded, rows: dict[str, Tensor]) -> Scores:
    """Largest probability of a linear probe that was fit on the retained seen features."""
    kept = ~subject.selection.concepts[subject.seen.concept]
    labels = subject.labels[subject.seen.concept[kept]]
    features = [_part(subject, name)[1][chosen] for name, chosen in rows.items()]
    probabilities = linear_probe(subject.seen_features[kept], labels, torch.cat(features)).amax(1)
    return dict(zip(rows, torch.split(probabilities, [len(chosen) for chosen in rows.values()]), strict=True))


def _encoder(subject: Encoded, rows: dict[str, Tensor], seed: int) -> Scores:
    """Mean pairwise cosine of the features of random views."""
    scores = {}
    generator = torch.Generator().manual_seed(seed)
    for name, chosen in rows.items():
        images = _part(subject, name)[0].images[chosen]
        views = [
            F.normalize(
                encode_images(subject.model, random_view(images, subject.model.image_size, generator)), dim=-1
            )
            for _ in range(VIEWS)
        ]
        # |Σ u|² = V + 2 Σ_{i<j} u_i·u_j
        total = torch.stack(views).sum(0).square().sum(1).double()
        scores[name] = ((total - VIEWS) / (VIEWS * (VIEWS - 1))).cpu()
    return scores


@torch.no_grad()
def _class_scores(subject: Encoded, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Largest probability of any subcategory, of retained and of forgotten held-out images."""
    model = subject.model
    kept, gone = (
        (
            model.logit_scale.exp()
            * model.similarity(_part(subject, name)[1][rows[name]], subject.subcategories)
        )
        .log_softmax(1)
        .amax(1)
        for name in ("kept_nonmember", "nonmember")
    )
    return kept, gone


def _nonmember_rate(scores: Scores) -> float:
    """Share of the forgotten seen images below the threshold that best parts the retained ones."""
    kept, others = scores["kept"].double(), scores["kept_nonmember"].double()
    thresholds = torch.cat([kept, others]).sort().values
    # Balanced accuracy of "member where score >= threshold", for every threshold at once.
    hit = 1 - torch.searchsorted(kept.sort().values, thresholds) / len(kept)
    reject = torch.searchsorted(others.sort().values, thresholds) / len(others)
    threshold = thresholds[(hit + reject).argmax()]
    return (scores["member"].double() < threshold).double().mean().item()
