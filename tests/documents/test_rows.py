"""Tests of the files that rows are read from, in the forms in which data sets are published."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_export.documents import rows as reading
from moe_export.documents.rows import file_rows
from moe_export.documents.sources import outside_files
from moe_export.errors import CalibrationError, DependencyError
from moe_export.recipe import Source

ROWS = [{"text": f"row {n}: é \u2028 \u0085 end", "id": n} for n in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=1).encode()
BOM = b"\xef\xbb\xbf"


def zipped(content: bytes) -> bytes:
    """Compress with no time in the header: test ids are the same in every process."""
    return gzip.compress(content, mtime=0)


def read(path: Path, content: bytes) -> list[dict[str, Any]]:
    path.write_bytes(content)
    return [row.fields for row in file_rows(path, ["text"])]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.jsonl", LINES.rstrip()),
        ("rows.jsonl", BOM + LINES),
        ("rows.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("rows.jsonl", LINES.replace(b"\n", b"\n\n \n")),
        ("rows.jsonl", LINES.replace(b"\n", b"\n" + BOM)),
        ("rows.json", ARRAY),
        ("rows.json", BOM + b"\n " + ARRAY.replace(b"\n", b"\r\n")),
        ("rows.jsonl.gz", zipped(LINES)),
        ("rows", zipped(BOM + ARRAY)),
    ],
)
def test_published_forms_give_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(tmp_path / name, content) == ROWS


def test_an_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "READ_BYTES", 3)
    assert read(tmp_path / "rows.json", ARRAY) == ROWS
    assert read(tmp_path / "rows.json", b" [ ] ") == []


def test_parquet_is_read_without_the_columns_that_are_not_used(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(ROWS * 100), path)
    rows = list(file_rows(path, ["text"]))
    assert [row.fields["text"] for row in rows] == [row["text"] for row in ROWS * 100]
    assert {row.fields["id"] for row in rows} == {None}
    assert [row.number for row in rows] == list(range(1, 501))
    path.write_bytes(path.read_bytes()[:-40] + b"PAR1")
    with pytest.raises(CalibrationError, match="cannot be read as Parquet"):
        list(file_rows(path, ["text"]))


def test_parquet_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError, match=r"moe-export\[parquet\]"):
        read(tmp_path / "rows.parquet", b"PAR1")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"text,id\na,1\n", r"rows:1: not a line of JSON .*to_json"),
        (LINES.decode().encode("utf-16"), "text in UTF-16; convert it with `iconv -f UTF-16"),
        ('{"text": "é"}\n'.encode("latin-1"), r"byte 0xe9 in line 1\); convert .* LATIN1"),
        (b'{"text": "a"}\n{"text": "\xff"}', "byte 0xff in line 2"),
        (LINES.decode().encode("utf-16-le"), "UTF-16 without a byte order mark.*UTF-16LE"),
        (LINES.decode().encode("utf-16-be"), "UTF-16 without a byte order mark.*UTF-16BE"),
        (LINES.decode().encode("utf-32"), "text in UTF-32; convert"),
        (b"\x7fELF\x02\x01\x00\x00 rest", "is no text, as it holds zero bytes"),
        (zipped(zipped(LINES)), "compressed twice by gzip; unpack"),
        (zipped(b"PAR1"), "Parquet compressed by gzip; unpack"),
        (b"\x28\xb5\x2f\xfd rest", "compressed by zstd; unpack it with `zstd -d`"),
        (b"PK\x03\x04 rest", "a zip archive; unpack"),
        (b"BZh9 rest", "compressed by bzip2"),
        (b"\xfd7zXZ\x00 rest", "compressed by xz"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.*git lfs pull"),
        (b"\0" * 257 + b"ustar", "a tar archive"),
        (zipped(b"\0" * 257 + b"ustar"), "a tar archive"),
        (zipped(LINES)[:-12], "damaged and cannot be unpacked"),
        (b"\x1f\x8b\x08 rest", "damaged and cannot be unpacked"),
        (b"[1]", "rows:1: the row is a number; expected JSON objects"),
        (b'"text"\n', "rows:1: the row is text; expected JSON objects"),
        (b'[{"text": "a"} {"text": "b"}]', "rows:1: not a JSON array .expected ','"),
        (b'[{"text": "a"}, {"text": "b"', "rows:2: not a JSON array"),
        (b'[{"text": "a"},]', "rows:2: not a JSON array .a comma after its last item"),
        (b"[{}] {}", "text after its end"),
        (b'[{"text": "\xff"}]', "byte 0xff"),
        (b"[" * 100_000, "rows:1: the row is a list"),
        (b'{"a":' * 100_000, "rows:1: not a line of JSON .nested too deeply"),
        (b'[{"a":' + b'{"a":' * 100_000, "rows:1: not a JSON array .nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "rows:1: not a line of JSON .Exceeds the limit"),
    ],
)
def test_other_content_is_named_with_its_conversion(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    with pytest.raises(CalibrationError, match=sentence) as error:
        read(tmp_path / "rows", content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("start", [b"", b"["])
def test_a_row_that_never_ends_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1 << 16)
    monkeypatch.setattr(reading, "READ_BYTES", 1 << 10)
    with pytest.raises(CalibrationError, match=r"rows:1: the row is longer than"):
        read(tmp_path / "rows", start + b'{"text": "' + b"a" * (1 << 18) + b'"}')


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (pipe, "is a pipe or a device"),
        (device, "is a pipe or a device"),
        (directory, "is a directory; give the path of a file"),
        (loop, "cannot be read"),
        (lambda path: None, "no such file"),
    ],
)
@pytest.mark.parametrize("key", ["text", "jsonl"])
def test_paths_that_are_no_files_are_refused_before_they_are_opened(
    tmp_path: Path, make: Callable[[Path], object], sentence: str, key: str
) -> None:
    path = tmp_path / "rows"
    make(path)
    with pytest.raises(CalibrationError, match=sentence):
        outside_files([Source(**{key: str(path)})])
    with pytest.raises(CalibrationError, match=sentence):
        list(file_rows(path, ["text"]))
