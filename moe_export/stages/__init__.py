"""The stages: each a module with `run(job)`, files in and files out; no stage imports another.

This table is all that the runner knows of them, so that a run's state can be told without loading
what the stages load.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageFacts:
    """What the runner must know of a stage.

    Attributes:
        version: raised when the same settings would give other output.
        reads: the stages whose folders it is given, as far as the recipe has them.
        purpose: one line for `--dry-run` and `status`.
        shared: whether several workers carry it out together; all others the first does alone. So
            prune, whose distilling is one step after another of few batches each.
    """

    version: int
    reads: tuple[str, ...]
    purpose: str
    shared: bool = False


STAGES: dict[str, StageFacts] = {
    "calibrate": StageFacts(1, (), "token sequences from the sources"),
    "importance": StageFacts(4, ("calibrate",), "a score for every expert dimension", shared=True),
    "plan": StageFacts(4, ("importance",), "a width for every expert"),
    "prune": StageFacts(2, ("calibrate", "importance", "plan"), "the checkpoint without the rest"),
    "quantize": StageFacts(3, ("calibrate", "plan", "prune"), "the checkpoint in fewer bits"),
    "export": StageFacts(2, ("prune", "plan", "quantize"), "ONNX models"),
    "validate": StageFacts(
        3,
        ("calibrate", "prune", "quantize", "export"),
        "accuracy, memory and speed in ONNX Runtime",
    ),
    "report": StageFacts(
        3,
        ("calibrate", "importance", "plan", "prune", "quantize", "export", "validate"),
        "tables and pictures",
    ),
    "sweep": StageFacts(2, (), "shares kept and formats compared, exported and measured"),
    "bakeoff": StageFacts(1, (), "rankings compared on the masked model"),
}

MAIN_JOB = (
    "calibrate",
    "importance",
    "plan",
    "prune",
    "quantize",
    "export",
    "validate",
    "report",
)
"""In order; a stage whose section a recipe may leave out is carried out where it does not."""
