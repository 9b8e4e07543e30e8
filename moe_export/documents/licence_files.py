"""Licence files of a checkpoint, which travel with every model made from it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from moe_export.system.disk import disk_error

_NAME = re.compile(r"(licen[cs]e|notice|copying|use_policy)([.\-_].*)?", re.IGNORECASE)

LARGEST_BYTES = 1 << 20
"""A larger file is no licence."""


def licence_files(directory: Path) -> list[Path]:
    """Licences and notices in a folder, such as `LICENSE` and `NOTICE.txt`, by name.

    A link that leads out of the folder is left out, except into the blobs of the hub's cache.
    """
    return sorted(path for path in directory.iterdir() if _is_licence(path))


def copy_licence_files(source: Path, target: Path) -> list[str]:
    """Copies licences and notices of a checkpoint.

    Returns:
        Names of the copied files.

    Raises:
        ResourceError: A file cannot be written.
    """
    names = []
    for path in licence_files(source):
        try:
            shutil.copyfile(path, target / path.name)
        except OSError as error:
            raise disk_error(error, target / path.name) from error
        names.append(path.name)
    return names


def _is_licence(path: Path) -> bool:
    if not _NAME.fullmatch(path.name) or not path.is_file():
        return False
    home = path.parent.resolve()
    roots = [home]
    if home.parent.name == "snapshots":
        roots.append(home.parent.parent / "blobs")
    inside = any(path.resolve().is_relative_to(root) for root in roots)
    return inside and path.stat().st_size <= LARGEST_BYTES
