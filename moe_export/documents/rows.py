"""Rows of a file: JSON lines, a JSON array, either compressed by gzip, or Parquet."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from moe_export.documents.files import kind_of, not_utf8, refuse_foreign, unreadable
from moe_export.documents.parquet import parquet_rows
from moe_export.documents.values import kind
from moe_export.errors import CalibrationError

MAX_ROW_BYTES = 16 << 20
"""Largest row of JSON; a larger one would take gigabytes of memory as Python objects."""

READ_BYTES = 1 << 20
"""Bytes of a JSON array that are read at a time."""

BOM = b"\xef\xbb\xbf"
"""Byte order mark that Windows' editors put at the start of a file in UTF-8."""

WANTED = (
    "expected JSON objects, one a line, a JSON array of objects, or Parquet; convert other tables "
    'with pandas\' to_json(PATH, orient="records", lines=True)'
)


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        source: Name of the source.
        number: Number of the row from 1; for JSON lines that of the line.
        fields: Values by field.
    """

    source: str
    number: int
    fields: dict[str, Any]

    @property
    def place(self) -> str:
        """Source and number, for messages."""
        return f"{self.source}: row {self.number}"


def file_rows(path: Path, fields: Collection[str]) -> Iterator[Row]:
    """Yields the rows of a file one by one.

    Args:
        path: Path of the file.
        fields: Names of the fields that are used; Parquet reads only these.

    Raises:
        CalibrationError: The file cannot be read, or is of another kind.
        DependencyError: The file is Parquet, and pyarrow is absent.
    """
    form = kind_of(path)
    if form == "parquet":
        for number, row in enumerate(parquet_rows(path, fields), 1):
            yield Row(str(path), number, row)
        return
    opener: Callable[[Path], IO[bytes]] = gzip.open if form == "gzip" else _open  # type: ignore[assignment]
    try:
        with opener(path) as file:
            for number, fields_of_row in _json_rows(path, file):
                yield Row(str(path), number, fields_of_row)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CalibrationError(
            f"{path} is damaged and cannot be unpacked ({error}); copy it again"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _json_rows(path: Path, file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields number and content of each row of JSON lines or of an array."""
    head = file.read(512)
    refuse_foreign(path, head)
    file.seek(len(BOM) if head.startswith(BOM) else 0)
    is_array = head.removeprefix(BOM).lstrip()[:1] == b"["
    read = _array_items if is_array else _lines
    for number, row in read(path, file):
        if not isinstance(row, dict):
            raise CalibrationError(f"{path}:{number}: the row is {kind(row)}; {WANTED}")
        yield number, row


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """Yields number and value of each line; only a line feed ends a line of JSON."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise _too_long(path, number)
        try:
            text = line.decode().removeprefix("\ufeff")  # of files that were put together
        except UnicodeDecodeError as error:
            raise not_utf8(path, f"line {number}", error) from error
        if not text.strip():
            continue
        try:
            yield number, json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(
                f"{path}:{number}: not a line of JSON ({_reason(error)}); {WANTED}"
            ) from error


def _array_items(path: Path, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """Yields number and value of each item of a JSON array, without holding all of it."""
    items = _ArrayReader(path, file)
    items.take("[")
    while items.next_character() != "]":
        if items.number > 0:
            items.take(",")
        yield items.item()
    items.take("]")
    if items.next_character():
        raise items.error("text after its end")


class _ArrayReader:
    """Reader of a JSON array in pieces.

    Attributes:
        number: Number of items read so far.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False
        self.number = 0

    def next_character(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            rest = self._text[self._at : self._at + 64]
            self._at += len(rest) - len(rest.lstrip())
            if rest.lstrip():
                return rest.lstrip()[0]
            if not rest and not self._more():
                return ""

    def take(self, character: str) -> None:
        """Skips a character that must be there."""
        if self.next_character() != character:
            raise self.error(f"expected {character!r}")
        self._at += 1

    def item(self) -> tuple[int, Any]:
        """Number and value of the next item."""
        self.number += 1
        if self.next_character() == "]":
            raise self.error("a comma after its last item")
        if self.next_character() == "[":
            return self.number, []  # refused as no object, without reading it
        while True:
            try:
                value, self._at = self._json.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > MAX_ROW_BYTES:
                    raise _too_long(self._path, self.number) from error
                if isinstance(error, RecursionError) or not self._more():
                    raise self.error(_reason(error)) from error
            else:
                return self.number, value

    def error(self, reason: str) -> CalibrationError:
        """Error with a sentence for an array that is no JSON."""
        return CalibrationError(
            f"{self._path}:{self.number}: not a JSON array ({reason}); {WANTED}"
        )

    def _more(self) -> bool:
        """Reads on; False at the end of the file."""
        if self._ended:
            return False
        # Twice as much as is left, so that a long item is not parsed again for every piece.
        block = self._file.read(max(READ_BYTES, 2 * (len(self._text) - self._at)))
        self._ended = not block
        try:
            text = self._utf8.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise not_utf8(self._path, f"row {self.number}", error) from error
        self._text, self._at = self._text[self._at :] + text, 0
        return True


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _too_long(path: Path, number: int) -> CalibrationError:
    return CalibrationError(
        f"{path}:{number}: the row is longer than {MAX_ROW_BYTES >> 20} MiB; split its text into "
        "several rows, or give it as text:"
    )
