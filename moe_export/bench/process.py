"""A process that holds one model and times it on request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from moe_export import errors
from moe_export.bench.models import Model
from moe_export.bench.requests import Sizes
from moe_export.errors import MoeExportError
from moe_export.system.processes import ended_by_signal

REST_S = 0.1
"""Seconds before a measurement: threads that have just worked, those of other processes too, wait
for more in a loop for some time and would take a core from it."""


class ModelProcess:
    """A process that holds one model.

    Args:
        model: Model to load.
        threads: Threads within an operator.

    Attributes:
        loaded: Seconds of loading (`load_s`), and bytes of memory that loading and a short decoding
            added to the process: `resident`, `proportional` (shared pages split among the processes
            that map them) and `anonymous`.

    Raises:
        MoeExportError: The model does not load; of the kind that the process met.
    """

    def __init__(self, model: Model, threads: int) -> None:
        self._name = model.name
        module, way = "in_onnx_runtime", model.operator
        if model.llama_cpp is not None:
            module, way = "in_llama_cpp", str(model.llama_cpp)
        arguments = [f"moe_export.bench.{module}", str(model.directory), way, str(threads)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=os.environ | ({"MOE_EXPORT_WEIGHTS": "copy"} if model.copied else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.loaded = self._answer()

    def run(self, sizes: Sizes) -> dict[str, float]:
        """Seconds of one prompt (`prefill_s`) and the median of a decoding step (`step_s`)."""
        assert self._process.stdin is not None
        time.sleep(REST_S)
        print(json.dumps(asdict(sizes)), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self.close()
            if code < 0:
                raise ended_by_signal(f"{self._name}: the process that holds the model", -code)
            raise MoeExportError(
                f"{self._name}: the process that holds the model ended with code {code}, expected "
                "a time from it; see its message above, or leave the model out"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            kind: type[MoeExportError] = getattr(errors, answer["kind"])
            raise kind(f"{self._name}: {answer['error']}")
        return answer
