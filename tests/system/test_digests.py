from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from moe_export.system import digests
from moe_export.system.digests import Digests, file_sha256, memory_file

LONG_AGO_NS = 10**18


def test_a_digest_is_that_of_the_content_in_the_order_asked_for(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(name)
    assert Digests().of([tmp_path / "b", tmp_path / "a"]) == [
        hashlib.sha256(name).hexdigest() for name in (b"b", b"a")
    ]


def test_a_file_is_read_once_by_all_processes_until_it_changes(
    tmp_path: Path, read: list[str]
) -> None:
    file, memory = tmp_path / "file", tmp_path / "cache" / "digests.json"
    file.write_text("one")
    first = Digests(memory).of([file])
    assert Digests(memory).of([file]) == first
    assert read == ["file"]
    facts = file.stat()
    file.write_text("two")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert Digests(memory).of([file]) != first, "its time of change is newer"
    assert read == ["file", "file"]


def test_a_file_written_just_now_is_read_again(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "RESOLUTION_NS", 60 * 10**9)
    known = Digests()
    (tmp_path / "file").write_text("one")
    for _ in range(2):
        known.of([tmp_path / "file"])
    assert read == ["file", "file"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": [[1, 2], "x"]}', "[" * 9999])
def test_a_damaged_memory_is_no_failure(tmp_path: Path, read: list[str], content: str) -> None:
    file, memory = tmp_path / "file", tmp_path / "digests.json"
    file.write_text("one")
    memory.write_text(content)
    assert Digests(memory).of([file]) == [hashlib.sha256(b"one").hexdigest()]
    assert Digests(memory).of([file]) == [hashlib.sha256(b"one").hexdigest()]
    assert read == ["file"]


def test_a_memory_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    for memory in (tmp_path / "file" / "digests.json", Path("/proc/no/digests.json"), tmp_path):
        assert Digests(memory).of([tmp_path / "file"]) == [hashlib.sha256(b"one").hexdigest()]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="Not a regular file"):
            file_sha256(path)


def test_the_memory_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("MOE_EXPORT_CACHE", raising=False)
    assert memory_file() == Path("/xdg/moe-export/digests.json")
    monkeypatch.setenv("MOE_EXPORT_CACHE", "/own")
    assert memory_file() == Path("/own/digests.json")
