"""Execution of a call in a forked process, with limits, and how it ended."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MEMORY_BYTES = 2 << 30
"""Address space that a call may take beyond what the process has already."""

CPU_S, WALL_S = 10, 90
"""Processor time after which a call hangs, and wall time, of which other work may take the most."""


@dataclass(frozen=True)
class Outcome:
    """End of a call.

    Attributes:
        code: Exit code; minus the number of the signal that ended it.
        out: Text that it wrote to stdout.
        err: Text that it wrote to stderr.
        cpu_s: Processor time, its children included.
        wall_s: Wall time.
        added_bytes: Peak of resident memory beyond that of the process it was forked from.
    """

    code: int
    out: str
    err: str
    cpu_s: float
    wall_s: float
    added_bytes: int


class Started:
    """A call that runs in a forked process.

    Args:
        call: Function that returns an exit code.
        is_limited: True to limit processor time and memory.

    Attributes:
        process: Number of the process.
    """

    def __init__(self, call: Callable[[], int], *, is_limited: bool = True) -> None:
        self._before_bytes = _resident_bytes()
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - of `wait`
        self._started = time.monotonic()
        self.process = os.fork()
        if self.process == 0:
            _become(call, self._out, self._err, is_limited)

    def wait(self, wall_s: float = WALL_S) -> Outcome:
        """Waits for the end of the process; kills it and its children after some seconds."""
        _wait(self.process, wall_s)
        _, status, usage = os.wait4(self.process, 0)
        wall_s = time.monotonic() - self._started
        _end_group(self.process)
        with self._out, self._err:
            return Outcome(
                code=os.waitstatus_to_exitcode(status),
                out=_content(self._out),
                err=_content(self._err),
                cpu_s=usage.ru_utime + usage.ru_stime,
                wall_s=wall_s,
                added_bytes=max(0, usage.ru_maxrss * 1024 - self._before_bytes),
            )


def forked(call: Callable[[], int], wall_s: float = WALL_S) -> Outcome:
    """Runs a call in a forked process and waits for it, at most some seconds."""
    return Started(call).wait(wall_s)


def _become(call: Callable[[], int], out: IO[bytes], err: IO[bytes], is_limited: bool) -> None:
    """Carries the call out in the forked process, which ends here."""
    code = 99
    try:
        os.setsid()
        faulthandler.disable()
        for number, file in enumerate((None, out, err)):
            source = os.open(os.devnull, os.O_RDONLY) if file is None else file.fileno()
            os.dup2(source, number)
        # Whatever holds the streams of this process, such as pytest, is left behind.
        sys.stdout = os.fdopen(1, "w", errors="backslashreplace", closefd=False)
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)
        if is_limited:
            _limit()
        code = call()
    except SystemExit as error:  # of argparse
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - a traceback is what is looked for
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        os._exit(code)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _wait(process: int, wall_s: float) -> None:
    try:
        number = os.pidfd_open(process)
    except ProcessLookupError:  # it has ended, and waits for `wait4`
        return
    try:
        poll = select.poll()
        poll.register(number, select.POLLIN)
        if not poll.poll(wall_s * 1000):
            os.kill(process, signal.SIGALRM)  # tells it from other ends
    finally:
        os.close(number)


def _end_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(1 << 20).decode("utf-8", "replace")
