"""Fingerprints of the files outside a run directory that its steps read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moe_export.checkpoint import Checkpoint
from moe_export.documents.sources import outside_files
from moe_export.documents.tokens import TOKENIZER_FILE
from moe_export.errors import CheckpointError
from moe_export.quantization import QUANTIZATION_KEY
from moe_export.recipe import BakeoffSettings, CalibrateSettings, Source, ValidateSettings
from moe_export.runner.run import file_sha256
from moe_export.runner.steps import Step


def fingerprints(steps: list[Step], model: Path) -> dict[str, dict[str, str]]:
    """Fingerprints by step folder: of the checkpoint, its tokenizer, and the step's local files.

    The checkpoint's covers its config, and the headers and sizes of its shards.

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
    common = {"checkpoint": checkpoint.fingerprint()}
    if (model / TOKENIZER_FILE).exists():
        common["tokenizer"] = file_sha256(model / TOKENIZER_FILE)
    return {step.folder: common | outside_files(_sources(step)) for step in steps}


def _sources(step: Step) -> Iterable[Source]:
    if isinstance(step.settings, CalibrateSettings):
        return step.settings.sources
    if isinstance(step.settings, ValidateSettings | BakeoffSettings):
        return step.settings.tasks
    return ()
