"""The losses in plain Python floats, one pair at a time, by formulas other than the library's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Vector = Sequence[float]


def point(v: Vector, c: float) -> tuple[float, list[float]]:
    """Time and space components on the hyperboloid of curvature -c."""
    norm = math.sqrt(c) * math.hypot(*v)
    space = [x * (math.sinh(norm) / norm if norm else 1.0) for x in v]
    return math.sqrt(1 / c + sum(x * x for x in space)), space


def inner(v1: Vector, v2: Vector, c: float) -> float:
    (t1, x1), (t2, x2) = point(v1, c), point(v2, c)
    return sum(a * b for a, b in zip(x1, x2, strict=True)) - t1 * t2


def hyperbolic(v1: Vector, v2: Vector, c: float) -> float:
    return -math.acosh(max(1.0, -c * inner(v1, v2, c))) / math.sqrt(c)


def cosine(v1: Vector, v2: Vector, c: float) -> float:
    return sum(a * b for a, b in zip(v1, v2, strict=True)) / (math.hypot(*v1) * math.hypot(*v2))


def outside(text: Vector, image: Vector, c: float, min_radius: float = 0.1) -> float:
    """Exterior angle at the text minus its half aperture (MERU, equations 7 and 8)."""
    (t_time, t_space), (i_time, _) = point(text, c), point(image, c)
    product = inner(text, image, c)
    norm = math.hypot(*t_space)
    cos = (i_time + t_time * c * product) / (norm * math.sqrt((c * product) ** 2 - 1))
    aperture = math.asin(min(1.0, 2 * min_radius / (math.sqrt(c) * norm)))
    return math.acos(min(1.0, max(-1.0, cos))) - aperture


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def terms(
    images: Sequence[Vector],
    texts: Sequence[Vector],
    forget: Sequence[bool],
    ids: Sequence[int],
    tau: float,
    c: float,
    similarity: Callable[[Vector, Vector, float], float],
) -> dict[str, float]:
    """Every unweighted term of AC and, for a hyperbolic similarity, of HAC."""
    n = range(len(images))
    retain = [a for a in n if not forget[a]]
    gone = [a for a in n if forget[a]]
    s = [[similarity(images[a], texts[b], c) for b in n] for a in n]

    def log_sum(a: int, others: Sequence[int], by_text: bool) -> float:
        values = [tau * (s[b][a] if by_text else s[a][b]) for b in others]
        return math.log(math.fsum(math.exp(x - max(values)) for x in values)) + max(values)

    contrast = []
    for a in retain:
        others = [b for b in retain if b == a or ids[b] != ids[a]]
        contrast.append((log_sum(a, others, False) + log_sum(a, others, True)) / 2 - tau * s[a][a])
    mismatched = [tau * s[a][b] for a in gone for b in gone if ids[a] != ids[b]]
    found = {
        "contrastive_loss": mean(contrast),
        "negative_alignment_loss": -mean(mismatched),
        "positive_alignment_loss": mean([tau * s[a][a] for a in gone]),
        "performance_loss": mean(
            [(log_sum(a, n, False) + log_sum(a, n, True)) / 2 for a in gone if mismatched]
        ),
    }
    if similarity is hyperbolic:
        found["entailment_loss"] = mean([max(0.0, outside(texts[a], images[a], c)) for a in retain])
        found["cone_exit_loss"] = mean([max(0.0, -outside(texts[a], images[a], c)) for a in gone])
        found["norm_loss"] = 0.0
        for side in (images, texts):
            radius = [math.sqrt(c) * math.hypot(*v) for v in side]
            goal = mean([radius[a] for a in retain])
            found["norm_loss"] += mean([(radius[a] - goal) ** 2 for a in gone]) / 2
    return found


def siglip(
    images: Sequence[Vector], texts: Sequence[Vector], ids: Sequence[int], tau: float, bias: float
) -> float:
    """SigLIP's loss, equation 1 of arXiv 2303.15343: every pair by itself; equal captions are left out."""
    total = 0.0
    for a, image in enumerate(images):
        for b, text in enumerate(texts):
            logit = tau * cosine(image, text, 1.0) + bias
            if a == b:
                total += math.log(1 + math.exp(-logit))
            elif ids[a] != ids[b]:
                total += math.log(1 + math.exp(logit))
    return total / len(images)
