"""Laws that every implementation must keep, to be subclassed by its tests.

They need pytest and hypothesis (``pip install riemann-unlearn[test]``). A class of laws becomes a test by
subclassing it and saying what is tested::

    from riemann_unlearn.testing import HyperbolicLaws

    class TestMyManifold(HyperbolicLaws):
        dims = (2, 10)  # what is drawn can be narrowed

        def make(self, c, dtype):
            return MyManifold(torch.tensor(c, dtype=dtype))
"""

from riemann_unlearn.testing.losses import LossLaws
from riemann_unlearn.testing.manifolds import ConeLaws, HyperbolicLaws
from riemann_unlearn.testing.spaces import SpaceLaws

__all__ = ["ConeLaws", "HyperbolicLaws", "LossLaws", "SpaceLaws"]
