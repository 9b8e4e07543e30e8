"""Arguments of a stage's execution."""

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
    """Execution of a stage.

    Attributes:
        settings: Recipe's section of the stage.
        model: Directory of the checkpoint to work on: the source, or the tuned one.
        folders: Folders of the stages that it reads, by name.
        out: Folder of this stage, empty at the beginning.
        progress: Function that receives progress reports.
        workers: Group of the processes that carry the stage out together.
        source: Directory of the source checkpoint, which cards name; `model` if None.
    """

    settings: SettingsT
    model: Path
    folders: Mapping[str, Path]
    out: Path
    progress: Progress = silent
    workers: Workers = ALONE
    source: Path | None = None

    @property
    def origin(self) -> Path:
        """Directory of the source checkpoint."""
        return self.source or self.model

    @property
    def partial(self) -> Path:
        """Folder that an interrupted execution resumes from; removed when the stage ends."""
        return self.out.with_name(f"{self.out.name}.partial")
