"""Fixtures of the surgery tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Measurements of tests go to a folder of their own, never to the user's."""
    monkeypatch.setenv("RESGROW_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
