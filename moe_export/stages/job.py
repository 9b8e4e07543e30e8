"""What a stage is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from moe_export.system.progress import Progress, silent
from moe_export.system.workers import ALONE, Workers

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True)
class Job(Generic[SettingsT]):
    """One execution of a stage.

    Attributes:
        settings: the recipe's section of the stage.
        model: directory of the source checkpoint.
        folders: where the stages that it reads have written.
        out: its own folder, empty.
        progress: see `Progress`.
        workers: those that carry it out together.
    """

    settings: SettingsT
    model: Path
    folders: Mapping[str, Path]
    out: Path
    progress: Progress = silent
    workers: Workers = ALONE

    @property
    def partial(self) -> Path:
        """A folder for what an interrupted execution has reached; it goes when the stage ends."""
        return self.out.with_name(f"{self.out.name}.partial")
