"""SHA-256 of files, computed once for as long as a file does not change.

A file counts as unchanged if its device, inode, size and the times of its last write and change are
as before. These times have a resolution, so a file that was written just before it was read is read
again the next time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path

from moe_export.system.digested import take_written

RESOLUTION_NS = 2_000_000_000
"""Coarsest resolution of the times of files on common file systems."""

READERS = 4
"""Most files that are read at once."""

ALONE_BYTES = 1 << 20
"""Bytes of files below which threads cost more than they save."""

MOST_KEPT = 10_000
"""Most digests in the file that keeps them; the oldest are dropped."""

Facts = tuple[int, int, int, int, int]
"""Device, inode, size in bytes, and times of the last write and change in nanoseconds."""


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a regular file's content, in hex.

    Raises:
        OSError: the file is missing, unreadable or not regular; a pipe is not waited for.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file for reading; for a pipe or a device it fails instead of waiting.

    Raises:
        OSError: the file is missing, unreadable or not regular.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(number, "rb")


class Digests:
    """Digests of files, each computed when it is first asked for.

    Args:
        memory: JSON file that keeps digests for later processes; None keeps them in this one only.
            If it cannot be read or written, they are computed again.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known = {} if memory is None else _read(memory)

    def of(self, paths: Iterable[Path], *, as_written: bool = False) -> list[str]:
        """Returns the SHA-256 of every file in hex, in order.

        Args:
            paths: Files.
            as_written: True if files that this process has written with `digested` and nobody has
                asked for yet are not read: their digests are those of the bytes written.

        Raises:
            OSError: a file is missing, unreadable or not regular.
        """
        before = dict(self._known)
        paths = list(paths)
        if sum(path.stat().st_size for path in paths) < ALONE_BYTES:
            digests = [self._digest(path, as_written) for path in paths]
        else:
            with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as readers:
                digests = list(readers.map(lambda path: self._digest(path, as_written), paths))
        if self._memory is not None and self._known != before:
            _write(self._memory, self._known)
        return digests

    def _digest(self, path: Path, as_written: bool) -> str:
        name = str(path.absolute())
        facts = _facts(path)
        known = self._known.get(name)
        if known is not None and known[0] == facts:
            return known[1]
        started_ns = time.time_ns()
        digest = (take_written(path) if as_written else None) or file_sha256(path)
        if _facts(path) == facts and _is_old(facts, started_ns):
            self._known[name] = (facts, digest)
        return digest

    def can_keep(self, path: Path) -> bool:
        """Tells whether the file's digest is unknown, and will be known once it is computed.

        Raises:
            OSError: the file is missing.
        """
        facts = _facts(path)
        known = self._known.get(str(path.absolute()))
        return (known is None or known[0] != facts) and _is_old(facts, time.time_ns())


def memory_file() -> Path:
    """Path of the file that keeps digests of checkpoints for this user."""
    return cache_folder() / "digests.json"


def cache_folder() -> Path:
    """Folder `MOE_EXPORT_CACHE`, or else `moe-export` in the XDG cache folder."""
    named = os.environ.get("MOE_EXPORT_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(home) / "moe-export"


def _facts(path: Path) -> Facts:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_old(facts: Facts, now_ns: int) -> bool:
    """Tells whether a later change would show in the times of the file."""
    return max(facts[3:]) < now_ns - RESOLUTION_NS


def _read(memory: Path) -> dict[str, tuple[Facts, str]]:
    try:
        with open_regular(memory) as file:
            content = json.load(file)
        return {
            str(name): ((int(a), int(b), int(c), int(d), int(e)), str(digest))
            for name, ((a, b, c, d, e), digest) in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _write(memory: Path, known: dict[str, tuple[Facts, str]]) -> None:
    """Replaces the file; a process that reads it meanwhile sees the old one."""
    kept = dict(list(known.items())[-MOST_KEPT:])
    temporary = memory.with_name(f"{memory.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept), encoding="utf-8")
        temporary.replace(memory)
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
