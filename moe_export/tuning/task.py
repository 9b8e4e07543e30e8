"""Inputs of a training, the same for both ways to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_export.checkpoint import Checkpoint
from moe_export.families.base import ModelSpec
from moe_export.recipe import TuneSettings
from moe_export.system.progress import Progress
from moe_export.tuning.draw import TuningSet


@dataclass(frozen=True)
class TuningTask:
    """A model to train, the documents to train it on, and the settings.

    Attributes:
        source: Directory of the source checkpoint, the goal of `objective: distill`.
        before: Checkpoint that is tuned.
        spec: Sizes of the tuned model.
        sets: Documents of each source of documents.
        settings: Settings of the section.
        partial: Folder of the files that an interrupted training resumes from.
        progress: Function that reports every step.
    """

    source: Path
    before: Checkpoint
    spec: ModelSpec
    sets: list[TuningSet]
    settings: TuneSettings
    partial: Path
    progress: Progress
