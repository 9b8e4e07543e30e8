"""Files whose SHA-256 is computed while they are written, so that nobody reads them for it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

BEHIND_BYTES = 16 << 20
"""Most bytes of pieces that are written but not digested yet; a larger piece is waited for."""

_written: dict[tuple[int, int, int, int], str] = {}
"""Digests by device, inode, size and time of the last write in nanoseconds."""


class DigestedFile:
    """File that is written from its beginning to its end, with the digest of what was written.

    Args:
        file: Empty file, open for writing.
        beside: Thread that computes the digest while more is made and written.
    """

    def __init__(self, file: BinaryIO, beside: ThreadPoolExecutor) -> None:
        self._file = file
        self._beside = beside
        self._digest = hashlib.sha256()
        self._behind: deque[tuple[Future[None], int]] = deque()
        self._behind_bytes = 0

    def write(self, piece: bytes | memoryview) -> None:
        """Writes a piece behind the last one; it may not be changed afterwards.

        Raises:
            OSError: The piece cannot be written.
        """
        size_bytes = memoryview(piece).nbytes
        self._wait(BEHIND_BYTES - size_bytes)
        self._behind.append((self._beside.submit(self._digest.update, piece), size_bytes))
        self._behind_bytes += size_bytes
        self._file.write(piece)
        self._wait(BEHIND_BYTES)

    def _wait(self, most_bytes: int) -> None:
        """Waits until at most so many bytes are not digested, or none."""
        while self._behind and self._behind_bytes > most_bytes:
            digested, size_bytes = self._behind.popleft()
            digested.result()
            self._behind_bytes -= size_bytes

    def tell(self) -> int:
        """Returns the number of bytes written."""
        return self._file.tell()

    def hexdigest(self) -> str:
        """Returns the SHA-256 of the bytes written, in hex."""
        self._wait(0)
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
