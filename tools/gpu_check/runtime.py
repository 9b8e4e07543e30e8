"""The native library under ONNX Runtime's CUDA provider."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from moe_export.decoding import generate
from moe_export.op.library import register
from moe_export.probe import probe
from moe_export.runtime import OrtModel
from tests.cuda.formats import PACKAGED_KINDS
from tests.op.cases import CASES, inputs_of
from tests.op.executors import feeds, one_node_model, run_reference
from tests.op.tolerance import error_bound
from tools.bench_op import models

ROOT = Path(__file__).parents[2]
LAYERS = 2
REPEATS = 20
# One type throughout: ONNX Runtime's MoE of this file takes float32.
THROUGH_ONNX_RUNTIME = ("one_token", "many_tokens", "all_widths_zero", "relu2_and_a_shared_expert")

# Float16 errs by 0.01 in the logits of the demo model, and may turn a token over.
DEMO_WORDS = (
    "validate.providers=[cuda]",
    "export.dtype=float16",
    "validate.gates.max_logit_error=0.05",
    "validate.gates.min_greedy_agreement=0.9",
)

CANDIDATES = ("ragged_float32", "ragged_int4", "moe_float32_padded")


def _session(model: bytes | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    register(options)
    session = onnxruntime.InferenceSession(model, options, providers=["CUDAExecutionProvider"])
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    return session


def onnxruntime_part() -> list[dict[str, Any]]:
    """Every case by the library, then layers side by side."""
    return [*_conformance(), *_layers()]


def _conformance() -> list[dict[str, Any]]:
    """A few cases: every session costs a second, and the library has seen all of them."""
    rows = []
    for kind in PACKAGED_KINDS:
        failures = []
        for case in (case for case in CASES if case.name in THROUGH_ONNX_RUNTIME):
            inputs = inputs_of(case, *kind)
            model: onnx.ModelProto = one_node_model(inputs)
            y = _session(model.SerializeToString()).run(None, feeds(inputs))[0]
            error = np.abs(y.astype(np.float64) - run_reference(inputs).astype(np.float64))
            if not (error <= error_bound(inputs)).all():
                failures.append(case.name)
        rows.append(
            {
                "what": "cases " + " ".join(map(str, kind)),
                "failed": " ".join(failures),
                "held": not failures,
            }
        )
    return rows


def _layers() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    widths = models.skewed_widths(random)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in CANDIDATES:
            path, _ = models.build(name, widths, LAYERS, Path(folder) / name, random)
            session = _session(str(path))
            for tokens in (1, 16, 512):
                binding = session.io_binding()
                for key, array in models.feeds(name, tokens, random).items():
                    value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
                    binding.bind_ortvalue_input(key, value)
                for output in session.get_outputs():
                    binding.bind_output(output.name, "cuda")
                times = []
                for _ in range(REPEATS):
                    started = time.perf_counter()
                    session.run_with_iobinding(binding)
                    binding.synchronize_outputs()
                    times.append(time.perf_counter() - started)
                us = statistics.median(times) / LAYERS * 1e6
                rows.append({"what": name, "tokens": tokens, "us_per_layer": us})
    return rows


def demo() -> list[dict[str, Any]]:
    """The demo recipe on the device with steps in a CUDA graph; then the other caches."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "moe_export", "run", "recipes/demo_50pct.yaml"]
        command += ["--run", folder]
        for word in DEMO_WORDS:
            command += ["--set", word]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            words = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return [
                {"what": "demo recipe", "exit_code": done.returncode, "words": words, "held": False}
            ]
        measured = json.loads((Path(folder) / "validate" / "measurements.json").read_text())
        speed = [{"variant": row["variant"], **row} for row in measured["speed"]]
        pruned = Path(folder) / "export" / "pruned"
        tokens = {cache: _greedy(pruned, cache) for cache in ("growing", "static", "captured")}
        for cache in ("growing", "static"):
            settings = {"batch_sizes": [1], "threads": [1], "repeats": 3}
            settings |= {"prompt_tokens": 128, "new_tokens": 64}
            found = probe(pruned, "cuda", "native", cache, settings)["speed"]
            speed += [{"variant": "pruned", **row} for row in found]
    rows: list[dict[str, Any]] = [
        {
            "what": f"demo {row['variant']}",
            "batch": row["batch_size"],
            "decode_tokens_per_s": row["decode_tokens_per_s"]["median"],
            "path": row["path"],
        }
        for row in speed
    ]
    keys = ("device_loaded_bytes", "device_peak_bytes", "device_kv_cache_bytes")
    rows += [
        {"what": f"demo {row['variant']}", **{key: row[key] for key in keys}}
        for row in measured["memory"]
    ]
    rows += [
        {"what": f"greedy tokens, {cache} and growing", "held": tokens[cache] == tokens["growing"]}
        for cache in ("static", "captured")
    ]
    return rows


def _greedy(directory: Path, cache: str) -> list[int]:
    model = OrtModel(directory, "cuda", cache=cache)
    return list(generate(model, list(range(40)), 64, []))
