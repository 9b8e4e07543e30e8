"""Observation of a run from outside."""

from __future__ import annotations

from moe_export.runner.run import State
from moe_export.runner.steps import Step
from moe_export.system.progress import Progress, silent


class Watcher:
    """Silent observer of a run; subclass it and override what is to be shown."""

    def progress_of(self, step: Step) -> Progress:  # noqa: ARG002 - for subclasses
        """Callable that a step reports its progress to."""
        return silent

    def on_step(self, state: State, seconds: float | None) -> None:
        """Called before a step runs (seconds None) and after it; once, with 0, if it is fresh."""
