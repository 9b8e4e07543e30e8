"""How far a stage is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how far a stage is: so much done of a total, and what it is about to do."""

    def __call__(self, done: int, total: int, what: str) -> None:  # noqa: D102
        ...


def silent(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""
