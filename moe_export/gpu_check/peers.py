"""Our layers beside ONNX Runtime's own MoE operators, all in ONNX Runtime's CUDA provider.

ONNX Runtime's operators have one width: they run padded to 1408, ours at 704 on average. They
choose the experts from scores; ours is given indices. Activations are float16, the only dtype in
which the provider has QMoE; int4 has groups of 128, as QMoE takes 64 and 128 only.
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
"""Uncounted runs of the first draw, and counted runs of each draw."""

MOST_S = 90
"""Seconds after which a candidate is given up."""


@dataclass(frozen=True)
class Candidate:
    """A model to time.

    Attributes:
        model: Name in `moe_export.testing.layer_models`.
        layers: Number of layers, each with its own weights; the weights that one token touches
            exceed the 50 MB of an H100's second-level cache.
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
    """Times all candidates: microseconds of a layer by tokens, and ratios to the peers."""
    rows = []
    for candidate in CANDIDATES:
        try:
            work = Apart("moe_export.gpu_check.peers", "times_of", candidate, TOKENS, "cuda")
            rows += work.result(MOST_S)
        except ApartError as error:
            row: dict[str, Any] = {"layer": candidate.model, "refused": str(error)}
            # Our operators may not be refused.
            rows.append(row if candidate.model in RATIOS else row | {"held": False})
    return with_ratios(rows)


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds each peer's time at as many tokens, over ours, to our rows."""
    times = {(row["layer"], row.get("tokens")): row.get("us_per_layer") for row in rows}
    for row in rows:
        if row["layer"] in RATIOS or "us_per_layer" not in row:
            continue
        for peer, column in RATIOS.items():
            theirs = times.get((peer, row["tokens"]))
            row[column] = None if theirs is None else theirs / row["us_per_layer"]
    return rows


def times_of(candidate: Candidate, tokens: Sequence[int], provider: str) -> list[dict[str, Any]]:
    """Times one candidate, a row for each number of tokens.

    If ONNX Runtime does not capture the run in a CUDA graph, it is timed without one, and the
    column `graph` holds ONNX Runtime's message.
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
            seconds_by_tokens = _times(
                path, provider, candidate.model, tokens, captured=provider == "cuda"
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's kinds are many; said in the row
            graph = "no: " + " ".join(str(error).split())[:200]
            seconds_by_tokens = _times(path, provider, candidate.model, tokens, captured=False)
    return [
        {
            "layer": candidate.model,
            "tokens": count,
            "us_per_layer": seconds / candidate.layers * 1e6,
            "graph": graph,
        }
        for count, seconds in seconds_by_tokens.items()
    ]


def draws_of(model: str, tokens: int) -> list[dict[str, NDArray[Any]]]:
    """Inputs of all draws; where indices are given, they choose each expert equally often."""
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
    """Seconds of a run of all layers by tokens: the mean over draws of the median of each.

    A time includes one call of ONNX Runtime.
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
    seconds_by_tokens = {}
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
        seconds_by_tokens[count] = statistics.mean(medians)
    return seconds_by_tokens
