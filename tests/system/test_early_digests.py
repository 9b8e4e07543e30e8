from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from moe_export.system import early_digests
from moe_export.system.digests import Digests


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the folder often, and takes files of five bytes and more for large."""
    monkeypatch.setattr(early_digests, "INTERVAL_S", 0.01)
    monkeypatch.setattr(early_digests, "LEAST_BYTES", 5)


def _wait_for(names: list[str], *wanted: str) -> None:
    end = time.monotonic() + 20
    while not set(wanted) <= set(names):
        assert time.monotonic() < end, f"{wanted} were not read, only {names}"
        time.sleep(0.01)


def test_a_large_file_is_read_while_others_are_written(tmp_path: Path, read: list[str]) -> None:
    known = Digests()
    with early_digests.early_digests(known, tmp_path):
        (tmp_path / "large").write_text("large")
        _wait_for(read, "large")
    assert known.of([tmp_path / "large"]) == [hashlib.sha256(b"large").hexdigest()]
    assert read == ["large"]


def test_a_small_file_is_left(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "few").write_text("few")
    with early_digests.early_digests(Digests(), tmp_path):
        (tmp_path / "zlarge").write_text("large")  # looked at after all others
        _wait_for(read, "zlarge")
    assert read == ["zlarge"]


def test_a_file_that_changes_afterwards_is_read_again(tmp_path: Path, read: list[str]) -> None:
    known = Digests()
    with early_digests.early_digests(known, tmp_path):
        (tmp_path / "shard").write_text("before")
        _wait_for(read, "shard")
        (tmp_path / "shard").write_text("after it")
    assert known.of([tmp_path / "shard"]) == [hashlib.sha256(b"after it").hexdigest()]


def test_an_error_of_the_stage_passes(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="of the stage"),
        early_digests.early_digests(Digests(), tmp_path),
    ):
        raise ValueError("of the stage")
