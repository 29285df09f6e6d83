"""Which backend serves, decided by a test."""

from __future__ import annotations

import importlib

import pytest
import torch

from riemann_unlearn.ops.backend import BACKENDS, Backend

home = importlib.import_module("riemann_unlearn.ops.backend")


def force(monkeypatch: pytest.MonkeyPatch, **kinds: str) -> None:
    """Have an op served by a kind of backend, wherever its features are."""
    chosen = home.choose

    def choose(op: str, device: str, dtype: torch.dtype) -> Backend:
        return BACKENDS[f"{op}/{kinds[op]}"] if op in kinds else chosen(op, device, dtype)

    monkeypatch.setattr(home, "choose", choose)
