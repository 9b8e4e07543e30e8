"""The stages: each a module with `run(job)`, files in and files out; no stage imports another.

This table is all that the runner knows of them. So the state of a run is found without loading the
libraries that the stages need.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageFacts:
    """Facts about a stage that the runner needs.

    Attributes:
        version: version of the stage; it is raised when the same settings give other output.
        reads: names of the stages whose folders it is given, if the recipe has them.
        is_shared: True if all workers carry the stage out together; the first carries out the
            others alone.
    """

    version: int
    reads: tuple[str, ...]
    is_shared: bool = False


STAGES: dict[str, StageFacts] = {
    # Where the recipe tunes the model first, stages that read `tune` take it for the source.
    "tune": StageFacts(2, ()),
    "calibrate": StageFacts(4, ("tune",)),
    "importance": StageFacts(5, ("tune", "calibrate"), is_shared=True),
    "ranking": StageFacts(1, ("tune", "calibrate", "importance")),
    "plan": StageFacts(7, ("tune", "importance", "ranking")),
    # Distilling takes many steps of few batches each, so prune is not shared.
    "prune": StageFacts(5, ("tune", "calibrate", "importance", "plan")),
    "quantize": StageFacts(4, ("calibrate", "plan", "prune")),
    "export": StageFacts(10, ("tune", "prune", "plan", "quantize")),
    "validate": StageFacts(8, ("tune", "calibrate", "prune", "quantize", "export")),
    "eval": StageFacts(1, ("tune", "prune", "export")),
    "report": StageFacts(
        7,
        (
            *("tune", "calibrate", "importance", "ranking", "plan", "prune", "quantize", "export"),
            *("validate", "eval"),
        ),
    ),
    "sweep": StageFacts(2, ()),
    "bakeoff": StageFacts(4, ()),
}

MAIN_JOB = (
    "tune",
    "calibrate",
    "importance",
    "ranking",
    "plan",
    "prune",
    "quantize",
    "export",
    "validate",
    "eval",
    "report",
)
"""The stages of `run` in order; one whose section the recipe leaves out is skipped."""
