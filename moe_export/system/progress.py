"""Progress reports of a stage."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Function that a stage reports to: steps done, steps in total, and the next step's name."""

    def __call__(self, done: int, total: int, what: str) -> None:  # noqa: D102
        ...


def silent(done: int, total: int, what: str) -> None:
    """Ignores the progress."""
