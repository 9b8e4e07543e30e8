"""Fixtures of the tests of digests."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_export.system import digests
from moe_export.system.digests import file_sha256


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read to compute their digests."""
    names: list[str] = []

    def counting(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(digests, "file_sha256", counting)
    monkeypatch.setattr(digests, "RESOLUTION_NS", 0)
    return names
