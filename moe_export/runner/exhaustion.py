"""Errors of memory that ran out: the stage it was, and the settings that take less."""

from __future__ import annotations

from moe_export.errors import MoeExportError, ResourceError
from moe_export.system.memory import tells_of_exhaustion

ADVICE = {
    "calibrate": "lower calibrate.sequences or calibrate.sequence_length",
    "importance": "lower importance.batch_tokens or set importance.dtype: bfloat16",
    "ranking": "lower ranking.held_out or calibrate.sequence_length",
    "prune": "lower prune.calibration_tokens, or set prune.refit: false and leave "
    "prune.distill_router out",
    "quantize": "lower quantize.calibration_tokens, or set quantize.method: mse",
    "validate": "lower validate.sequence_length, validate.speed.batch_sizes or the items of tasks",
    "bakeoff": "lower calibrate.sequence_length or the items of bakeoff.tasks",
}
"""Settings of each stage that take less memory; the others have none."""


def out_of_memory(error: Exception, stage: str) -> MoeExportError | None:
    """Returns the error that says how a stage may need less memory; None for other errors.

    Args:
        error: error that ended the stage.
        stage: name of the stage.
    """
    if not isinstance(error, MemoryError) and not tells_of_exhaustion(str(error)):
        return None
    advice = ADVICE.get(stage)
    settings = f"{advice}, or " if advice else ""
    return ResourceError(
        f"memory ran out in stage {stage}; {settings}use a machine with more; finished stages are "
        "kept"
    )
