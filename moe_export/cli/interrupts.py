"""Interrupts that are never lost.

Python drops an exception raised by a signal if it arrives in a callback that may not raise, and
importing modules runs many of those. So the signal is also remembered, and checked at the next step
of a run or the next report of its progress.
"""

from __future__ import annotations

import signal
from types import FrameType

_was_asked = False


def watch() -> None:
    """Handles Ctrl-C and SIGTERM in this process from now on."""
    global _was_asked  # noqa: PLW0603 - signals are the process's
    _was_asked = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ask)


def heed() -> None:
    """Stops here if an interrupt has arrived.

    Raises:
        KeyboardInterrupt: an interrupt has arrived.
    """
    if _was_asked:
        raise KeyboardInterrupt


def _ask(_signal: int, _frame: FrameType | None) -> None:
    global _was_asked  # noqa: PLW0603
    _was_asked = True
    raise KeyboardInterrupt
