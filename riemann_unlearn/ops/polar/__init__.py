"""Features as rows of a matrix product: what all ops share; ``sides`` says what that is."""

from riemann_unlearn.ops.polar.sides import (
    Side,
    add_matched_gradient,
    add_pair_steps,
    careful_distance,
    from_differences,
    matched_angles,
    matched_distances,
    pair_similarities,
    zeros,
)

__all__ = [
    "Side",
    "add_matched_gradient",
    "add_pair_steps",
    "careful_distance",
    "from_differences",
    "matched_angles",
    "matched_distances",
    "pair_similarities",
    "zeros",
]
