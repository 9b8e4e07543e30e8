"""Output for people: progress bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from moe_export.cli import interrupts
from moe_export.runner.run import State
from moe_export.runner.steps import Step
from moe_export.runner.watcher import Watcher
from moe_export.system.progress import Progress as StageProgress
from moe_export.system.text import printable
from moe_export.system.workers import is_first

# No markup, so that brackets as in "moe-export[gpu]" are printed as they are.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def say(text: str) -> None:
    """Prints lines of text, in which names of files cannot act on the terminal."""
    console.print(printable(text, keep="\n\t"))


def say_line(text: str) -> None:
    """Prints one line of text, whatever the names in it hold."""
    console.print(printable(text))


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows of text; all columns but the first are right-aligned."""
    table = Table(
        title=printable(title), title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for number, name in enumerate(head):
        table.add_column(printable(name), justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table)


class RunDisplay(Watcher):
    """Display of a run's steps, as a context manager; under `torchrun`, of the first process."""

    def __init__(self) -> None:
        self._bars = (
            Progress(
                SpinnerColumn(),
                TextColumn("{task.fields[folder]:<20}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            if sys.stdout.isatty() and is_first()
            else None
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()

    def progress_of(self, step: Step) -> StageProgress:
        """A bar for a step, or nothing without a terminal."""
        if self._bars is None:
            return _no_bar
        bars = self._bars
        task = bars.add_task("", total=None, folder=step.folder)
        self._task = task

        def show(done: int, total: int, what: str) -> None:
            interrupts.heed()
            bars.update(task, completed=done, total=total, description=printable(what))

        return show

    def on_step(self, state: State, seconds: float | None) -> None:
        """Prints a line when a step begins (without a terminal) and when it ends."""
        interrupts.heed()
        folder = f"{state.step.folder:<20}"
        if seconds is None:
            if self._bars is None:
                say_line(f"{folder} … {state.reason}")
            return
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        outcome = f"done in {seconds:.1f} s" if seconds else "fresh"
        say_line(f"{folder} {outcome}")


def _no_bar(done: int, total: int, what: str) -> None:  # noqa: ARG001 - a `Progress`
    """Progress without a terminal, where a line for each report would only fill a log."""
    interrupts.heed()
