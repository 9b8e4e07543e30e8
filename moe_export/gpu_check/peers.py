"""Layers of ours beside ONNX Runtime's own MoE operators, all in ONNX Runtime's CUDA provider.

ONNX Runtime's know one width, so they run padded to 1408 where ours has 704 on average, and choose
the experts themselves from scores, where ours is given indices. Activations are float16, in which
alone the provider has QMoE, and int4 is in groups of 128, of which it takes 64 and 128.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from moe_export.gpu_check.apart import Apart, ApartError
from moe_export.gpu_check.draws import routing
from moe_export.op.library import register
from moe_export.ort.session import NO_GRAPH, PROVIDERS
from moe_export.testing import layer_models as models
from moe_export.testing import layer_sizes as sizes

X_DTYPE = "float16"
GROUP = 128
TOKENS = (1, 4, 16, 64, 512, 4096)
WARM_UP, REPEATS = 3, 5
"""Runs of the first draw that are not counted, and of each draw that are."""

MOST_S = 90
"""After this a candidate is given up."""


@dataclass(frozen=True)
class Candidate:
    """What is timed.

    Attributes:
        model: name in `moe_export.testing.layer_models`.
        layers: of other weights each, so many that those which one token touches are more than the
            50 MB of an H100's cache of second level.
    """

    model: str
    layers: int


MOE, QMOE = "moe_float16_padded", "qmoe_int4_padded"
CANDIDATES = (
    Candidate(MOE, 4),
    Candidate("ragged_float16", 4),
    Candidate("ragged_bfloat16", 4),
    Candidate(QMOE, 8),
    Candidate("ragged_int4", 8),
)
RATIOS = {MOE: "times_as_fast_as_padded_moe", QMOE: "times_as_fast_as_padded_qmoe"}


def peers() -> list[dict[str, Any]]:
    """Microseconds of a layer by candidate and tokens, and how many times as fast ours are."""
    rows = []
    for candidate in CANDIDATES:
        try:
            work = Apart("moe_export.gpu_check.peers", "times_of", candidate, TOKENS, "cuda")
            rows += work.result(MOST_S)
        except ApartError as error:
            row: dict[str, Any] = {"layer": candidate.model, "refused": str(error)}
            # Of ours nothing may be refused.
            rows.append(row if candidate.model in RATIOS else row | {"held": False})
    return with_ratios(rows)


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, those of ours with the time of each peer at as many tokens over theirs."""
    times = {(row["layer"], row.get("tokens")): row.get("us_per_layer") for row in rows}
    for row in rows:
        if row["layer"] in RATIOS or "us_per_layer" not in row:
            continue
        for peer, column in RATIOS.items():
            theirs = times.get((peer, row["tokens"]))
            row[column] = None if theirs is None else theirs / row["us_per_layer"]
    return rows


def times_of(candidate: Candidate, tokens: Sequence[int], provider: str) -> list[dict[str, Any]]:
    """A row for each number of tokens.

    Where ONNX Runtime does not capture the model's run in a CUDA graph, it is timed without, and
    the column `graph` has ONNX Runtime's words.
    """
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path, _ = models.build(
            candidate.model,
            sizes.skewed_widths(random),
            candidate.layers,
            Path(folder) / "model",
            random,
            x_dtype=X_DTYPE,
            group_size=GROUP,
        )
        graph = "captured"
        try:
            if provider != "cuda":
                graph = "none on the CPU"
            found = _times(path, provider, candidate.model, tokens, captured=provider == "cuda")
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's kinds are many; said in the row
            graph = "no: " + " ".join(str(error).split())[:200]
            found = _times(path, provider, candidate.model, tokens, captured=False)
    return [
        {
            "layer": candidate.model,
            "tokens": count,
            "us_per_layer": seconds / candidate.layers * 1e6,
            "graph": graph,
        }
        for count, seconds in found.items()
    ]


def draws_of(model: str, tokens: int) -> list[dict[str, NDArray[Any]]]:
    """Inputs that together choose each expert equally often where indices are given."""
    random = np.random.default_rng(tokens)
    draws = []
    for draw in range(sizes.EXPERTS // sizes.TOP_K):
        fed = models.feeds(model, tokens, random, X_DTYPE)
        if "expert_indices" in fed:
            fed["expert_indices"] = routing(tokens, draw)[0]
        draws.append(fed)
    return draws


def _times(
    path: Path, provider: str, model: str, tokens: Sequence[int], *, captured: bool
) -> dict[int, float]:
    """Seconds of a run of all layers by tokens: the mean over draws of each one's median. The call
    of ONNX Runtime is in it, once.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if provider == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    register(options)
    of_provider = {"enable_cuda_graph": "1"} if captured else {}
    session = onnxruntime.InferenceSession(
        str(path), options, providers=[(PROVIDERS[provider], of_provider)]
    )
    assert session.get_providers()[0] == PROVIDERS[provider], "the provider did not start"
    found = {}
    for graph, count in enumerate(tokens, start=1):
        draws = draws_of(model, count)
        bound = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, provider, 0)
            for name, array in draws[0].items()
        }
        binding = session.io_binding()
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            y = np.zeros((count, sizes.HIDDEN), sizes.NUMPY[X_DTYPE])
            value = onnxruntime.OrtValue.ortvalue_from_numpy(y, provider, 0)
            binding.bind_ortvalue_output(output.name, value)
        run = onnxruntime.RunOptions()
        run.add_run_config_entry("gpu_graph_id", str(graph if captured else NO_GRAPH))
        for _ in range(WARM_UP):
            session.run_with_iobinding(binding, run)
        medians = []
        for fed in draws:
            for name, array in fed.items():
                bound[name].update_inplace(array)
            times = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                session.run_with_iobinding(binding, run)
                times.append(time.perf_counter() - started)
            medians.append(statistics.median(times))
        found[count] = statistics.mean(medians)
    return found
