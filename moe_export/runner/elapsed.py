"""Time that a stage has taken, interruptions left out."""

from __future__ import annotations

import time
from pathlib import Path

from moe_export.system.progress import Progress

FILE = "elapsed_s"
"""File in the folder that an interrupted execution resumes from."""

INTERVAL_S = 1.0
"""Least time between two notes of the time, so that short steps cost nothing."""


class Elapsed:
    """Clock of a stage that goes on where an interrupted execution stopped.

    The time is noted with every report of progress; what came after the last one is lost.

    Args:
        partial: Folder that an interrupted execution resumes from; empty for a new one but for the
            key.
    """

    def __init__(self, partial: Path) -> None:
        self._path = partial / FILE
        self._before_s = _read(self._path)
        self._started = self._noted = time.monotonic()

    def seconds(self) -> float:
        """Seconds of this execution and of the interrupted ones before it."""
        return self._before_s + time.monotonic() - self._started

    def noting(self, progress: Progress) -> Progress:
        """A function that reports progress and notes the time."""

        def report(done: int, total: int, what: str) -> None:
            now = time.monotonic()
            if now - self._noted >= INTERVAL_S:
                self._noted = now
                self._path.write_text(f"{self.seconds():.3f}", encoding="utf-8")
            progress(done, total, what)

        return report


def _read(path: Path) -> float:
    """The noted seconds; 0 without a note, or with one that was cut while it was written."""
    try:
        return float(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return 0.0
