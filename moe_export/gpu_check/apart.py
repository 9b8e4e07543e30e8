"""Work in a process of its own, so that its failure does not stop the rest.

An error on a device may leave a process unable to use it again, and foreign code may crash.
"""

from __future__ import annotations

import multiprocessing
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

MOST_CHARACTERS = 300
"""Length to which the message of an error is cut."""


class ApartError(Exception):
    """Work that gave no result; the message says why."""


class Apart:
    """A function at work in a new process.

    Args:
        module: Full name of a module.
        function: Name of a function of it.
        arguments: Arguments of the function; they and its result must be picklable.
    """

    def __init__(self, module: str, function: str, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(sender, module, function, arguments))
        self._process.start()
        sender.close()

    @property
    def is_ready(self) -> bool:
        """True if `result` would not wait."""
        return self._receiver.poll(0)

    def result(self, timeout_s: float | None = None) -> Any:
        """Result of the function.

        Args:
            timeout_s: Seconds after which the process is ended; None to wait for the result.

        Raises:
            ApartError: The function raised, the process ended, or the time is over.
        """
        if not self._receiver.poll(timeout_s):
            self.end()
            raise ApartError(f"it was ended after {timeout_s:.0f} s without a result")
        try:
            error, value = self._receiver.recv()
        except EOFError:
            self._process.join()
            raise ApartError(f"its process ended with code {self._process.exitcode}") from None
        self._process.join()
        if error is not None:
            raise ApartError(error)
        return value

    def end(self) -> None:
        """Ends the process if it is still there."""
        self._process.kill()
        self._process.join()


def _work(sender: Connection, module: str, function: str, arguments: tuple[Any, ...]) -> None:
    result: tuple[str | None, Any]
    try:
        result = (None, getattr(import_module(module), function)(*arguments))
    except Exception as error:  # noqa: BLE001 - the error is sent in place of the result
        traceback.print_exc()
        words = " ".join(f"{type(error).__name__}: {error}".split())
        result = (words[:MOST_CHARACTERS], None)
    sender.send(result)
