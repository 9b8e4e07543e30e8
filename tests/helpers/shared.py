"""Folders that the workers of one test run share."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Folder that the first worker fills while the others wait.

    Args:
        factory: Temporary folders of this worker.
        name: Name of the folder, unique in the run.
        make: Fills the folder that it is given, which exists and is empty. If it fails, the next
            worker that asks calls its own.

    Returns:
        The folder; tests only read it.
    """
    base = factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = common / name
    with (common / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _fill(folder, make)
    return folder


def _fill(folder: Path, make: Callable[[Path], object]) -> None:
    """Makes the folder under another name, so that a failure does not leave half of it."""
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    make(partial)
    partial.rename(folder)
