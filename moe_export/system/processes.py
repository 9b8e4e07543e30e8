"""Processes that this one starts: how they end."""

from __future__ import annotations

import ctypes
import os
import signal

from moe_export.errors import MoeExportError, ResourceError
from moe_export.system import host

_PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that a process gets when its parent ends."""

CRASHES = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGTRAP")
"""Signals that a process brings on itself."""


def end_with_parent() -> None:
    """Makes the system end this process when its parent ends, however that happens.

    Linux alone can; elsewhere the process ends when its input does.
    """
    if host.SYSTEM != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def ended_by_signal(process: str, number: int) -> MoeExportError:
    """Returns the error for a process that a signal has ended.

    Args:
        process: name of the process, with which the message begins.
        number: number of the signal.
    """
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if name in CRASHES:
        return MoeExportError(
            f"{process} crashed ({name}); run `moe-export doctor` and report its output with the "
            "recipe"
        )
    return ResourceError(
        f"{process} was killed ({name}), as systems do when memory runs out; free memory or take "
        "smaller batches, and run the same command again"
    )
