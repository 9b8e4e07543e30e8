"""What is said where the disk is too small or full."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from moe_export.errors import ResourceError


def require_space(directory: Path, needed_bytes: int, what: str) -> None:
    """Makes sure, before work begins, that what it writes has room.

    Args:
        directory: to be written to; it exists.
        needed_bytes: that are written.
        what: needs them, for the message.

    Raises:
        ResourceError: the disk has less.
    """
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes > free_bytes:
        raise ResourceError(
            f"{directory}: {what} needs {needed_bytes} bytes, the disk has {free_bytes} free; free "
            "some, or give a run directory on another disk with --run"
        )


def disk_error(error: Exception, path: Path) -> ResourceError:
    """The sentence for a failed write."""
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC or "os error 28" in str(error):
        return ResourceError(
            f"{path}: no space left on the disk; free some and run the same command again, "
            "finished stages are kept"
        )
    return ResourceError(f"{path}: cannot be written ({error})")
