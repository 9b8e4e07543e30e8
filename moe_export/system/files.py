"""Files and folders: written through to the disk, with the rights that the user's umask gives."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def entries(folder: Path) -> Iterator[Path]:
    """Yields everything below a folder, in order; links are yielded and never followed.

    Raises:
        OSError: a folder cannot be read.
    """
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        yield path
        if entry.is_dir(follow_symlinks=False):
            yield from entries(path)


def kind(path: Path) -> str:
    """Returns `file`, `folder`, `link`, or `special file` for pipes, sockets and devices.

    Raises:
        OSError: nothing is there.
    """
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special file"


def allow_by_umask(path: Path) -> None:
    """Gives a file that a library made for its owner alone the rights of any new file.

    Raises:
        OSError: the rights cannot be changed.
    """
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    # os.umask can only be read by changing it, for all threads of the process.
    match = re.search(r"^Umask:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1], 8) if match else 0o077
