"""Is it in the features still? The forgotten concept sought in frozen image features, without any text.

Everything is fit on seen images and scored on held-out ones. A class is a subcategory, or a forgotten
concept by itself (see :attr:`Encoded.labels`).

- *linear probe* (Alain and Bengio 2016, arXiv 1610.01644): multinomial logistic regression over all
  classes; ``recall`` is the share of forgotten images that it classifies right. ``roc_auc`` and
  ``balanced_accuracy`` are of a second one that tells forgotten from retained, both kinds weighted alike.
- *k-NN* (Wu et al. 2018, arXiv 1805.01978): the class most frequent among the k most similar seen images.
- *prototypes* (Snell et al. 2017, arXiv 1703.05175): the nearest class mean; and with n shots of every
  forgotten class, against whole prototypes of the retained, the *prototypical relearning attack* of Ha et
  al. 2025 (arXiv 2506.01318).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from riemann_unlearn.evaluation.encoded import Encoded
from riemann_unlearn.evaluation.encoding import CHUNK
from riemann_unlearn.evaluation.zero_shot import share
from riemann_unlearn.models import DualEncoder

NEIGHBOURS = 5
SHOTS = (1, 2, 4, 8, 16)
DRAWS = 5
"""Random choices of shots that a figure is the mean of."""


def recovery(subject: Encoded, seed: int = 0) -> dict[str, Any] | None:
    """What frozen features give back of the forgotten; None where no forgotten image is held out.

    Parameters
    ----------
    subject : Encoded
    seed : int
        Decides which images are the shots.

    Returns
    -------
    dict
        ``linear_probe`` (``recall``, ``retain_accuracy``, ``roc_auc``, ``balanced_accuracy``), ``knn`` and
        ``prototype`` (``recall``, ``retain_accuracy``), ``few_shot_prototype`` (``shots``, ``recall``), and
        ``chance``: of the recalls, one over the number of classes; of ROC-AUC and balanced accuracy it is
        one half.
    """
    if subject.heldout is None or subject.heldout_features is None:
        return None
    train, test = (subject.labels[part.concept] for part in (subject.seen, subject.heldout))
    gone, gone_seen = (subject.selection.concepts[part.concept] for part in (subject.heldout, subject.seen))
    if not gone.any() or not gone_seen.any():
        return None
    seen, heldout = subject.seen_features, subject.heldout_features
    present, own = torch.unique(train, return_inverse=True)

    def score(predicted: Tensor) -> dict[str, float | None]:
        hits = present[predicted.cpu()] == test
        return {"recall": share(hits[gone]), "retain_accuracy": share(hits[~gone])}

    probe, binary = linear_probe(seen, own, heldout), _binary_probe(seen, gone_seen, heldout, gone)
    return {
        "linear_probe": {**score(probe.argmax(1)), **binary},
        "knn": score(_nearest_neighbours(subject.model, seen, own, heldout)),
        "prototype": score(_nearest(subject.model, heldout, _means(subject.model, seen, own))),
        "few_shot_prototype": _few_shots(subject, own, gone_seen, score, seed),
        "chance": 1 / len(present),
    }


def linear_probe(features: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Probabilities, shape (M, classes), that a logistic regression fit on ``features`` gives ``test``."""
    fitted, standardized = _regression(features, labels, test)
    return torch.from_numpy(fitted.predict_proba(standardized))


def _binary_probe(seen: Tensor, gone_seen: Tensor, heldout: Tensor, gone: Tensor) -> dict[str, float | None]:
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    if gone.all() or gone_seen.all():
        return {"roc_auc": None, "balanced_accuracy": None}
    fitted, standardized = _regression(seen, gone_seen, heldout, class_weight="balanced")
    return {
        "roc_auc": float(roc_auc_score(gone, fitted.decision_function(standardized))),
        "balanced_accuracy": float(balanced_accuracy_score(gone, fitted.predict(standardized))),
    }


def _regression(features: Tensor, labels: Tensor, test: Tensor, **options: Any) -> tuple[Any, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features.cpu())
    # C = 0.1 with unit-variance features; the probe must not fail for want of iterations.
    regression = LogisticRegression(C=0.1, max_iter=1000, tol=1e-3, **options)
    regression.fit(scaler.transform(features.cpu()), labels.cpu().numpy())
    return regression, scaler.transform(test.cpu())


@torch.no_grad()
def _nearest_neighbours(model: DualEncoder, seen: Tensor, own: Tensor, heldout: Tensor) -> Tensor:
    votes = []
    labels = own.to(seen.device)
    for chunk in torch.split(heldout, CHUNK):
        nearest = model.nearest(chunk, seen, min(NEIGHBOURS, len(seen)))
        votes.append(torch.mode(labels[nearest], dim=1).values)
    return torch.cat(votes)


@torch.no_grad()
def _nearest(model: DualEncoder, features: Tensor, means: Tensor) -> Tensor:
    return torch.cat([model.nearest(chunk, means, 1)[:, 0] for chunk in torch.split(features, CHUNK)])


def _means(model: DualEncoder, features: Tensor, own: Tensor) -> Tensor:
    """Mean of the features of each class; its direction for a Euclidean model, which compares by cosine."""
    own = own.to(features.device)
    count = torch.bincount(own)
    means = features.new_zeros(len(count), features.shape[1]).index_add(0, own, features) / count[:, None]
    return F.normalize(means, dim=-1) if model.geometry == "euclidean" else means


def _few_shots(subject: Encoded, own: Tensor, gone: Tensor, score: Any, seed: int) -> dict[str, Any]:
    """Recall with n shots of each forgotten class, for every n that all of them have images for."""
    assert subject.heldout_features is not None
    model, seen = subject.model, subject.seen_features
    generator = torch.Generator().manual_seed(seed)
    classes = torch.unique(own[gone])
    least = min(int((own == label).sum()) for label in classes)
    shots = [n for n in SHOTS if n <= least]
    recalls = []
    for n in shots:
        found = []
        for _ in range(DRAWS):
            drawn = []
            for label in classes:
                rows = (own == label).nonzero()[:, 0]
                drawn.append(rows[torch.randperm(len(rows), generator=generator)[:n]])
            rows = torch.cat([torch.isin(own, classes, invert=True).nonzero()[:, 0], *drawn])
            means = _means(model, seen[rows], own[rows])
            found.append(score(_nearest(model, subject.heldout_features, means))["recall"])
        recalls.append(sum(found) / DRAWS)
    return {"shots": shots, "recall": recalls}
