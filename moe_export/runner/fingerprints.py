"""Fingerprints of the files outside a run directory that its steps read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from moe_export.checkpoint import Checkpoint
from moe_export.documents.files import file_sha256
from moe_export.documents.sources import outside_files
from moe_export.documents.tokenizer_files import tokenizer_files
from moe_export.errors import CheckpointError
from moe_export.quantization import QUANTIZATION_KEY
from moe_export.recipe import (
    BakeoffSettings,
    CalibrateSettings,
    EvalSettings,
    ExportSettings,
    Source,
    TuneSettings,
    ValidateSettings,
)
from moe_export.runner.steps import Step
from moe_export.system.digests import Digests, memory_file


def fingerprints(steps: list[Step], model: Path) -> dict[str, dict[str, str]]:
    """Fingerprints by step folder: of the checkpoint, its tokenizer, and the step's local files.

    That of the checkpoint covers every byte of its config and shards, and that of the tokenizer
    all files that are copied with it. Digests are remembered outside the run, see
    `moe_export.system.digests`.

    Args:
        steps: steps of the run.
        model: directory of the source checkpoint.

    Returns:
        Name of each source to its fingerprint, by step folder.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged or quantized already.
        CalibrationError: a source file cannot be read.
    """
    checkpoint = Checkpoint(model)
    if QUANTIZATION_KEY in checkpoint.config:
        raise CheckpointError(
            f"{model}: config.json says that the checkpoint is quantized; give the one that it was "
            "made from, and a quantize section"
        )
    digests = Digests(memory_file())
    common = {"checkpoint": checkpoint.fingerprint(digests)}
    if files := tokenizer_files(model):
        found = digests.of(files)
        lines = (f"{digest} {path.name}\n" for path, digest in zip(files, found, strict=True))
        common["tokenizer"] = hashlib.sha256("".join(lines).encode()).hexdigest()
    return {
        step.folder: common | outside_files(_sources(step)) | _task_files(step) | _wheel_files(step)
        for step in steps
    }


def _sources(step: Step) -> Iterable[Source]:
    if isinstance(step.settings, CalibrateSettings | TuneSettings):
        return step.settings.sources
    if isinstance(step.settings, ValidateSettings | BakeoffSettings):
        return step.settings.tasks
    return ()


def _task_files(step: Step) -> dict[str, str]:
    """SHA-256 by path of the files in a folder of lm-eval tasks: their YAML, code and data."""
    settings = step.settings
    if not isinstance(settings, EvalSettings) or settings.include_path is None:
        return {}
    folder = Path(settings.include_path)
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): file_sha256(path) for path in found if "__pycache__" not in path.parts}


def _wheel_files(step: Step) -> dict[str, str]:
    """SHA-256 by path of the wheels from which libraries of other platforms are taken."""
    settings = step.settings
    if not isinstance(settings, ExportSettings) or settings.wheels is None:
        return {}
    return {str(path): file_sha256(path) for path in sorted(Path(settings.wheels).glob("*.whl"))}
