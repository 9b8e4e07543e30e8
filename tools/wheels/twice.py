"""Second builds, from nothing, that have to give the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tools import zig
from tools.wheels.make import make
from tools.wheels.platforms import Platform

AGAIN = "again"
"""Folder of a second build below that of the first."""


def compare(first: Mapping[str, Path], again: Mapping[str, Path]) -> None:
    """Compares the files of two builds.

    Args:
        first: File of each name.
        again: Files of the second build.

    Raises:
        RuntimeError: Files differ or exist in one build only; the message names them.
    """
    wrong = [
        name
        for name in sorted(first.keys() | again.keys())
        if name not in first
        or name not in again
        or first[name].read_bytes() != again[name].read_bytes()
    ]
    if wrong:
        raise RuntimeError(f"two builds gave different bytes: {', '.join(wrong)}")


def make_again(
    platforms: list[Platform], build: Path, say: Callable[[str], None]
) -> dict[tuple[str, str], Path]:
    """Makes wheels in an empty folder, with nothing from the compiler's cache."""
    folder = build / AGAIN
    shutil.rmtree(folder, ignore_errors=True)
    os.environ.pop(zig.CACHE, None)  # a cache that the caller names would give the first objects
    return make(platforms, folder / "wheels", folder, say)
