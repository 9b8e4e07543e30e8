"""Requests to a process that holds a model, and its answers, one line of JSON each.

The first line of a process says what loading took. Each line on its standard input has the fields
of `Sizes`, and is answered by times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import MoeExportError, RecipeError
from moe_export.system.host import smaps_bytes

Ids = NDArray[np.int64]

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

    def time(
        self, vocabulary: int, prompt: Callable[[Ids], object], step: Callable[[Ids], object]
    ) -> dict[str, float]:
        """Times random tokens.

        Args:
            vocabulary: Number of tokens.
            prompt: Function that runs prompts, int64 [batch, tokens].
            step: Function that runs one more token of each, int64 [batch, 1].

        Returns:
            Seconds of the prompt (`prefill_s`), and the median of a step (`step_s`).
        """
        ids_BS = np.random.default_rng(0).integers(0, vocabulary, (self.batch, self.prompt_tokens))
        prefill_s = _seconds(prompt, ids_BS)
        # Greedy tokens of a model with random weights are all the same, and so are their experts.
        steps = [
            _seconds(step, np.random.default_rng(done).integers(0, vocabulary, (self.batch, 1)))
            for done in range(self.new_tokens)
        ]
        return {"prefill_s": prefill_s, "step_s": float(np.median(steps))}


def _seconds(run: Callable[[Ids], object], ids_BS: Ids) -> float:
    started = time.perf_counter()
    run(ids_BS)
    return time.perf_counter() - started


def answer_requests(load: Callable[[], Callable[[Sizes], dict[str, float]]]) -> None:
    """Loads a model and times it for every line of standard input.

    Args:
        load: Function that loads the model, and returns the function that times it.
    """
    before, started = _memory_bytes(), time.perf_counter()
    try:
        decode = load()
    except MoeExportError as error:
        _reply({"error": str(error), "kind": type(error).__name__})
        return
    load_s = time.perf_counter() - started
    decode(Sizes(batch=1, prompt_tokens=8, new_tokens=8))
    after = _memory_bytes()
    _reply({"load_s": load_s, **{key: after[key] - before[key] for key in after}})
    for line in sys.stdin:
        _reply(_times(decode, Sizes(**json.loads(line))))


def _times(decode: Callable[[Sizes], dict[str, float]], sizes: Sizes) -> dict[str, Any]:
    try:
        return decode(sizes)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises many kinds
        words = " ".join(str(error).split())
        return {
            "error": f"it does not run a prompt of {sizes.prompt_tokens} tokens and "
            f"{sizes.new_tokens} new ones in a batch of {sizes.batch} ({words}); choose smaller "
            "--prompt-tokens, --new-tokens or --batch",
            "kind": RecipeError.__name__,
        }


def _memory_bytes() -> dict[str, int]:
    """Memory by our names; none where the system does not tell."""
    sizes = {name: smaps_bytes(field) for name, field in _FIELDS.items()}
    return {name: size for name, size in sizes.items() if size is not None}


def _reply(answer: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()
