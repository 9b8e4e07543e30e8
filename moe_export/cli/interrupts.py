"""Interrupts that are never lost.

An exception that a signal raises is dropped where it arrives in a callback that may not raise, of
which there are many while modules are imported. So the signal is remembered too, and heeded at the
next step of a run or the next report of its progress.
"""

from __future__ import annotations

import signal
from types import FrameType

_was_asked = False


def watch() -> None:
    """Takes Ctrl-C and SIGTERM for this process from now on."""
    global _was_asked  # noqa: PLW0603 - signals are the process's
    _was_asked = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ask)


def heed() -> None:
    """Stops here if somebody has asked for it.

    Raises:
        KeyboardInterrupt: somebody has.
    """
    if _was_asked:
        raise KeyboardInterrupt


def _ask(_signal: int, _frame: FrameType | None) -> None:
    global _was_asked  # noqa: PLW0603
    _was_asked = True
    raise KeyboardInterrupt
