"""Runs of stages that only write small files, made in an instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_export.recipe import ExportSettings, ImportanceSettings, Section
from moe_export.runner.run import Run, State
from moe_export.runner.steps import Step
from moe_export.stages import MAIN_JOB, STAGES
from moe_export.stages.job import Job
from moe_export.system.progress import silent

FILES = ("first.json", "second.bin", "inner/third.bin")
"""Files that every stage writes."""


def write_files(job: Job[Any]) -> None:
    """Writes the files of a stage; each names the stage, so that no two are equal."""
    for name in FILES:
        path = job.out / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{job.out.name} {name}")


def fake_stages(monkeypatch: pytest.MonkeyPatch, **others: Any) -> None:
    """Puts functions in the place of the stages: `write_files`, unless another one is given.

    Nothing waits for the disk, which would take most of the time.
    """
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for name in MAIN_JOB:
        module = SimpleNamespace(run=others.get(name, write_files))
        monkeypatch.setitem(sys.modules, f"moe_export.stages.{name}", module)


def run_in(directory: Path) -> Run:
    """A run of all stages of the main job."""
    settings = {"importance": ImportanceSettings(), "export": ExportSettings()}
    steps = [
        Step(name, name, settings.get(name, Section()), {of: of for of in STAGES[name].reads})
        for name in MAIN_JOB
    ]
    return Run(directory, steps, Path("model"), {})


def execute(run: Run, *forced: str) -> list[str]:
    """Carries a run out, and returns the folders of the stages that ran."""
    ran: list[str] = []

    def told(state: State, seconds: float | None) -> None:
        if seconds is None:
            ran.append(state.step.folder)

    run.execute({"title": "a recipe"}, set(forced), lambda step: silent, told)
    return ran
