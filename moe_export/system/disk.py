"""Check of free disk space, and errors for failed writes."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from moe_export.errors import ResourceError


def require_space(directory: Path, needed_bytes: int, what: str) -> None:
    """Checks before work begins that the disk has room for its files.

    Args:
        directory: Existing directory that will be written to.
        needed_bytes: Bytes that will be written.
        what: Name of the files in the error message.

    Raises:
        ResourceError: The disk has less space.
    """
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes > free_bytes:
        raise ResourceError(
            f"{directory}: {what} needs {needed_bytes} bytes, the disk has {free_bytes} free; free "
            "some, or give a run directory on another disk with --run"
        )


def disk_error(error: Exception, path: Path) -> ResourceError:
    """Error with a sentence for a failed write to `path`."""
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC or "os error 28" in str(error):
        return ResourceError(
            f"{path}: no space left on the disk; free some and run the same command again, "
            "finished stages are kept"
        )
    return ResourceError(f"{path}: cannot be written ({error})")
