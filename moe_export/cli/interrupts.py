"""Interrupts that are never lost: Ctrl-C, SIGTERM, and SIGHUP when a terminal is closed.

Python drops an exception raised by a signal if it arrives in a callback that may not raise, and
importing modules runs many of those. So the signal is also remembered, and checked at the next step
of a run or the next report of its progress.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

SENTENCE = "interrupted; finished stages are kept, run the same command to resume"

_was_asked = False
_print_dropped = sys.unraisablehook


def watch() -> None:
    """Handles the signals in this process from now on; SIGHUP stays ignored under `nohup`."""
    global _was_asked  # noqa: PLW0603 - signals are the process's
    _was_asked = False
    signal.signal(signal.SIGINT, _ask)
    signal.signal(signal.SIGTERM, _ask)
    hang_up = getattr(signal, "SIGHUP", None)  # absent on Windows
    if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:
        signal.signal(hang_up, _ask)


def silence_dropped() -> None:
    """Lets Python drop an interrupt without printing it, since it is heeded later."""
    global _print_dropped  # noqa: PLW0603 - the hook is the process's
    if sys.unraisablehook is not _on_dropped:
        _print_dropped = sys.unraisablehook
        sys.unraisablehook = _on_dropped


def _on_dropped(dropped: Any) -> None:
    if dropped.exc_type is not KeyboardInterrupt:
        _print_dropped(dropped)


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
