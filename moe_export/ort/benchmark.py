"""Memory and speed of one exported model, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from moe_export.artifacts.base import Record
from moe_export.artifacts.measurements import ProcessMemory, Speed
from moe_export.errors import MoeExportError, ResourceError
from moe_export.ort.measuring import Setup
from moe_export.system.memory import tells_of_exhaustion
from moe_export.system.processes import ended_by_signal


class Measured(Record):
    """Result of the measuring process.

    Attributes:
        memory: memory of the process.
        speed: throughput by number of threads and batch size.
    """

    memory: ProcessMemory
    speed: tuple[Speed, ...]


def probe(setup: Setup) -> Measured:
    """Starts the measuring process and reads its result.

    Raises:
        ResourceError: memory ran out, or the process was killed.
        MoeExportError: the process failed; the message ends with its last line.
    """
    command = [sys.executable, "-m", "moe_export.ort.measuring", setup.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise ended_by_signal(f"{setup.directory}: the measuring process", -done.returncode)
    if done.returncode != 0:
        if tells_of_exhaustion(done.stderr):
            raise ResourceError(
                f"{setup.directory}: memory ran out in the measuring process; free some, or lower "
                "validate.speed.batch_sizes, and run the same command again"
            )
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MoeExportError(
            f"{setup.directory}: the measuring process ended with code {done.returncode}: {last}"
        )
    return Measured.model_validate_json(done.stdout)
