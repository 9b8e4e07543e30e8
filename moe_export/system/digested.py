"""Files whose SHA-256 is computed while they are written, so that nobody reads them for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

ALONE_BYTES = 1 << 16
"""Bytes of a piece below which a second thread costs more than it saves."""

_written: dict[tuple[int, int, int, int], str] = {}
"""Digests by device, inode, size and time of the last write in nanoseconds."""


class DigestedFile:
    """File that is written from its beginning to its end, with the digest of what was written.

    Args:
        file: Empty file, open for writing.
        beside: Thread that computes the digest while the file is written.
    """

    def __init__(self, file: BinaryIO, beside: ThreadPoolExecutor) -> None:
        self._file = file
        self._beside = beside
        self._digest = hashlib.sha256()

    def write(self, piece: bytes | memoryview) -> None:
        """Writes a piece behind the last one; it may be changed afterwards.

        Raises:
            OSError: The piece cannot be written.
        """
        if memoryview(piece).nbytes < ALONE_BYTES:
            self._digest.update(piece)
            self._file.write(piece)
            return
        digested = self._beside.submit(self._digest.update, piece)
        try:
            self._file.write(piece)
        finally:
            digested.result()

    def tell(self) -> int:
        """Returns the number of bytes written."""
        return self._file.tell()

    def hexdigest(self) -> str:
        """Returns the SHA-256 of the bytes written, in hex."""
        return self._digest.hexdigest()


@contextmanager
def digested(path: Path) -> Iterator[tuple[DigestedFile, BinaryIO]]:
    """Opens a new file for writing; when it is closed without an error, its digest is noted.

    Yields:
        The file to write to, and the open file beneath it for `flush` and `fileno`.

    Raises:
        OSError: The file cannot be written.
    """
    with ThreadPoolExecutor(1) as beside, path.open("wb") as file:
        written = DigestedFile(file, beside)
        yield written, file
        file.flush()
        found = path.stat()
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        _written[key] = written.hexdigest()


def take_written(path: Path) -> str | None:
    """Returns the SHA-256 of a file as it was written, in hex, once; None if it is not known.

    The second caller gets None, because a change of the content need not show in the time of the
    last write: only a reader can tell it.

    Raises:
        OSError: The file is missing.
    """
    found = path.stat()
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return _written.pop(key, None)
