"""A process that holds one model and times it on request.

`python -m moe_export.bench.process DIRECTORY OPERATOR THREADS` answers each line of JSON on its
standard input, the fields of `Sizes`, by a line of JSON. The first line says what loading took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_export import errors
from moe_export.bench.models import Model
from moe_export.errors import MoeExportError, RecipeError
from moe_export.ort.decoding import open_cache
from moe_export.ort.session import OrtModel
from moe_export.system.host import smaps_bytes
from moe_export.system.processes import end_with_parent, ended_by_signal

_FIELDS = {"resident": "Rss", "proportional": "Pss", "anonymous": "Anonymous"}
"""Our names of memory to those of proc(5)."""


@dataclass(frozen=True)
class Sizes:
    """One measurement.

    Attributes:
        batch: Sequences decoded together.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens decoded after it.
    """

    batch: int
    prompt_tokens: int
    new_tokens: int


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
        arguments = [str(model.directory), model.operator, str(threads)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moe_export.bench.process", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.loaded = self._answer()

    def run(self, sizes: Sizes) -> dict[str, float]:
        """Seconds of one prompt (`prefill_s`) and the median of a decoding step (`step_s`)."""
        assert self._process.stdin is not None
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


def answer_requests(directory: Path, operator: str, threads: int) -> None:
    """Loads a model and times it for every line of standard input."""
    import onnxruntime  # noqa: F401, PLC0415 - loaded before memory is counted

    before, started = _memory_bytes(), time.perf_counter()
    try:
        model = OrtModel(directory, threads=threads, operator=operator)
    except MoeExportError as error:
        _reply({"error": str(error), "kind": type(error).__name__})
        return
    load_s = time.perf_counter() - started
    _decode(model, Sizes(batch=1, prompt_tokens=8, new_tokens=8))
    after = _memory_bytes()
    _reply({"load_s": load_s, **{key: after[key] - before[key] for key in after}})
    for line in sys.stdin:
        _reply(_times(model, Sizes(**json.loads(line))))


def _times(model: OrtModel, sizes: Sizes) -> dict[str, Any]:
    try:
        return _decode(model, sizes)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises many kinds
        words = " ".join(str(error).split())
        return {
            "error": f"it does not run a prompt of {sizes.prompt_tokens} tokens and "
            f"{sizes.new_tokens} new ones in a batch of {sizes.batch} ({words}); choose smaller "
            "--prompt-tokens, --new-tokens or --batch",
            "kind": RecipeError.__name__,
        }


def _decode(model: OrtModel, sizes: Sizes) -> dict[str, float]:
    vocabulary = model.session.get_outputs()[0].shape[-1]
    cache = open_cache(model, sizes.batch, sizes.prompt_tokens + sizes.new_tokens)
    ids_BS = np.random.default_rng(0).integers(0, vocabulary, (sizes.batch, sizes.prompt_tokens))
    started = time.perf_counter()
    cache.prompt(ids_BS)
    prefill_s = time.perf_counter() - started
    steps = []
    for done in range(sizes.new_tokens):
        # Greedy tokens of a model with random weights are all the same, and so are their experts.
        ids_B = np.random.default_rng(done).integers(0, vocabulary, sizes.batch)
        started = time.perf_counter()
        cache.token(ids_B)
        steps.append(time.perf_counter() - started)
    return {"prefill_s": prefill_s, "step_s": float(np.median(steps))}


def _memory_bytes() -> dict[str, int]:
    """Memory by our names; none where the system does not tell."""
    sizes = {name: smaps_bytes(field) for name, field in _FIELDS.items()}
    return {name: size for name, size in sizes.items() if size is not None}


def _reply(answer: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    end_with_parent()
    answer_requests(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
