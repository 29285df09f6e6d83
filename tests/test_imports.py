"""What an import costs: checked in a fresh interpreter, by what it has loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

import riemann_unlearn as ru


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import riemann_unlearn.cli", ["torch", "numpy", "geoopt", "open_clip", "yaml"]),
        ("import riemann_unlearn", ["torch"]),
        ("import riemann_unlearn.losses", ["numba", "open_clip", "timm", "torchvision", "PIL", "yaml"]),
        ("import riemann_unlearn.geometry", ["open_clip", "timm", "torchvision", "PIL", "yaml"]),
    ],
)
def test_heavy_modules_wait_until_they_are_needed(statement: str, absent: list[str]) -> None:
    code = f"{statement}; import sys; print([m for m in {absent} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_every_public_name_is_there() -> None:
    for name in ru.__all__:
        assert getattr(ru, name) is not None
    assert dir(ru) == sorted(ru.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'forget_everything'"):
        ru.forget_everything  # noqa: B018
