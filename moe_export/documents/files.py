"""Local files that documents are read from: their kinds, checks and fingerprints."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_export.errors import CalibrationError

Kind = Literal["text", "gzip", "parquet"]
"""Kinds of files that are read: plain text, which JSON is too, compressed by gzip, and Parquet."""

HASHED_BYTES = 1 << 20
"""Bytes that are read at a time for a fingerprint."""


@dataclass(frozen=True)
class _Foreign:
    """A kind of file that is recognized, but not read.

    Attributes:
        start: First bytes of such a file.
        name: Name of the kind, with its article.
        way_out: Command or call that makes a file that is read.
    """

    start: bytes
    name: str
    way_out: str


_BY_PANDAS = 'to_json("rows.jsonl", orient="records", lines=True)'
_FOREIGN = (
    _Foreign(b"\xff\xfe\0\0", "text in UTF-32", "convert it with `iconv -f UTF-32 -t UTF-8`"),
    _Foreign(b"\0\0\xfe\xff", "text in UTF-32", "convert it with `iconv -f UTF-32 -t UTF-8`"),
    _Foreign(b"\xff\xfe", "text in UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8`"),
    _Foreign(b"\xfe\xff", "text in UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8`"),
    # A file that is gzip or Parquet is read; within gzip it is not.
    _Foreign(b"\x1f\x8b", "compressed twice by gzip", "unpack it with `gunzip`"),
    _Foreign(b"PAR1", "Parquet compressed by gzip", "unpack it with `gunzip`"),
    _Foreign(b"PARE", "an encrypted Parquet file", "write it without encryption"),
    _Foreign(b"PK\x03\x04", "a zip archive", "unpack it with `unzip`"),
    _Foreign(b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it with `zstd -d`"),
    _Foreign(b"BZh", "compressed by bzip2", "unpack it with `bunzip2`"),
    _Foreign(b"\xfd7zXZ\x00", "compressed by xz", "unpack it with `unxz`"),
    _Foreign(b"\x04\x22\x4d\x18", "compressed by lz4", "unpack it with `unlz4`"),
    _Foreign(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it with `7z x`"),
    _Foreign(b"ARROW1", "an Arrow file", "write Parquet with `pyarrow.parquet.write_table`"),
    _Foreign(b"SQLite format 3", "an SQLite database", f"write its rows with pandas' {_BY_PANDAS}"),
    _Foreign(b"\x89HDF", "an HDF5 file", f"write its rows with pandas' {_BY_PANDAS}"),
    _Foreign(b"Obj\x01", "an Avro file", f"write its rows with pandas' {_BY_PANDAS}"),
    _Foreign(b"ORC", "an ORC file", f"write its rows with pandas' {_BY_PANDAS}"),
    _Foreign(b"\x93NUMPY", "an array of numpy", "write its texts as JSON, one object a line"),
    _Foreign(b"\x80\x04", "a pickle, which could run code", "write its rows as JSON lines"),
    _Foreign(b"\x80\x05", "a pickle, which could run code", "write its rows as JSON lines"),
    _Foreign(b"\x80\x02", "a pickle, which could run code", "write its rows as JSON lines"),
    _Foreign(b"{\\rtf", "text in RTF", "save it as plain text"),
    _Foreign(b"%PDF-", "a PDF", "extract its text with `pdftotext`"),
    _Foreign(
        b"version https://git-lfs",
        "a pointer of Git LFS, not the file itself",
        "fetch the file with `git lfs pull`",
    ),
)


def require_file(path: Path) -> None:
    """Checks that a path leads to a regular file, so that reading it comes to an end.

    Raises:
        CalibrationError: There is no such file, or it is a directory, a pipe or a device.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        advice = "give the path of a text file"
        if any(character in str(path) for character in "*?["):
            advice = "patterns are not expanded, so give each file as a source of its own"
        raise CalibrationError(f"{path}: no such file; {advice}") from error
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        raise CalibrationError(f"{path} is a directory; give the path of a file in it")
    if not stat.S_ISREG(mode):
        raise CalibrationError(
            f"{path} is a pipe or a device, which may never end; save its content to a file"
        )


def kind_of(path: Path) -> Kind:
    """Kind of a file by its first bytes.

    Raises:
        CalibrationError: The file cannot be read, or is of a kind that is not read.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise unreadable(path, error) from error
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"PAR1"):
        return "parquet"
    refuse_foreign(path, head)
    return "text"


def refuse_foreign(path: Path, head: bytes) -> None:
    """Stops if the first bytes of a file, or of its unpacked content, are of a foreign kind.

    Raises:
        CalibrationError: They are; the message says how to convert the file.
    """
    for kind in _FOREIGN:
        if head.startswith(kind.start):
            raise CalibrationError(f"{path} is {kind.name}; {kind.way_out}")
    if head[257:262] == b"ustar":
        raise CalibrationError(f"{path} is a tar archive; unpack it with `tar -xf`")
    require_text(path, head)


def require_text(path: Path, content: bytes) -> None:
    """Stops at zero bytes, which text in UTF-8 does not have.

    Raises:
        CalibrationError: There are some; the message guesses the encoding.
    """
    if b"\0" not in content:
        return
    even, odd = (content[start:200:2].count(0) for start in (0, 1))
    if max(even, odd) < 4 * min(even, odd) + len(content[:200]) // 4:
        raise CalibrationError(
            f"{path} is no text, as it holds zero bytes; give text in UTF-8, or rows as jsonl:"
        )
    order = "UTF-16LE" if odd > even else "UTF-16BE"
    raise CalibrationError(
        f"{path} is text in UTF-16 without a byte order mark; convert it with `iconv -f {order} "
        "-t UTF-8`"
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        CalibrationError: The file cannot be read.
    """
    require_file(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(HASHED_BYTES):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def unreadable(path: Path, error: Exception) -> CalibrationError:
    """Error with a sentence for a file that cannot be read."""
    reason = getattr(error, "strerror", None) or error
    return CalibrationError(f"{path} cannot be read ({reason}); check the path and its rights")


def not_utf8(path: Path, place: str, error: UnicodeDecodeError) -> CalibrationError:
    """Error with a sentence for bytes that are not UTF-8.

    Args:
        path: Path of the file.
        place: Place within the file, such as `line 3`.
        error: Error of decoding the bytes.
    """
    byte = error.object[error.start]
    return CalibrationError(
        f"{path} cannot be read as UTF-8 text (byte 0x{byte:02x} in {place}); convert it, such as "
        "with `iconv -f LATIN1 -t UTF-8`"
    )


def shortened(value: object, characters: int = 60) -> str:
    """Python's notation of a value for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= characters else f"{text[:characters]}…"
