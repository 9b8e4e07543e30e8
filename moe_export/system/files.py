"""Files and folders: written through to the disk, with the rights that the user's umask gives."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from moe_export.system import host


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    if host.SYSTEM == "win32" and path.is_dir():
        return  # Windows opens no folders; it writes names through by itself
    number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
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
    path.chmod(0o666 & ~host.umask())
