"""Tests of digests that are computed while a file is written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from moe_export.system import digested as module
from moe_export.system import digests
from moe_export.system.digested import digested, take_written
from moe_export.system.digests import Digests

PIECES = (b"head", b"x" * (3 * module.ALONE_BYTES), b"", b"tail")
SHA256 = hashlib.sha256(b"".join(PIECES)).hexdigest()


def write(path: Path) -> None:
    with digested(path) as (written, _):
        for piece in PIECES:
            written.write(memoryview(piece))


def test_the_digest_of_a_written_file_is_given_once_under_any_name(tmp_path: Path) -> None:
    write(tmp_path / "partial")
    (tmp_path / "partial").rename(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"".join(PIECES)
    assert take_written(tmp_path / "file") == SHA256
    assert take_written(tmp_path / "file") is None


def test_a_file_that_was_changed_is_read(tmp_path: Path) -> None:
    write(tmp_path / "file")
    os.utime(tmp_path / "file", ns=(1, 1))
    assert take_written(tmp_path / "file") is None


def test_an_interrupted_file_has_no_digest(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with digested(path) as (written, _):
            written.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail(tmp_path / "file")
    assert take_written(tmp_path / "file") is None


def test_digests_read_only_what_others_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = digests.file_sha256

    def noted(path: Path) -> str:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(digests, "file_sha256", noted)
    write(tmp_path / "own")
    (tmp_path / "other").write_bytes(b"".join(PIECES))
    paths = [tmp_path / "own", tmp_path / "other"]
    known = Digests()
    assert known.of(paths, as_written=True) == [SHA256, SHA256]
    assert read == ["other"]
    # A stage that reads the file at once reads all of it: its times cannot show a change yet.
    assert known.of(paths) == [SHA256, SHA256]
    assert read[1:] == ["own", "other"]
