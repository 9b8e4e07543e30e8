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

from moe_export.op.library import register
from tests.cuda.formats import CUDA_KINDS
from tests.op.cases import CASES, inputs_of
from tests.op.executors import feeds, one_node_model, run_reference
from tests.op.tolerance import error_bound
from tools.bench_op import models

ROOT = Path(__file__).parents[2]
LAYERS = 6
REPEATS = 20
# One type throughout: ONNX Runtime's MoE of this file takes float32.
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
    rows = []
    for kind in CUDA_KINDS:
        failures = []
        for case in (case for case in CASES if case.activation == "swiglu"):
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
    """The demo recipe, validated on the device: parity, accuracy and speed as it finds them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "moe_export", "run", "recipes/demo_50pct.yaml"]
        command += ["--run", folder, "--set", "validate.providers=[cuda]"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            words = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return [
                {"what": "demo recipe", "exit_code": done.returncode, "words": words, "held": False}
            ]
        measured = json.loads((Path(folder) / "validate" / "measurements.json").read_text())
    return [
        {
            "what": f"demo {row['variant']}",
            "batch": row["batch_size"],
            "decode_tokens_per_s": row["decode_tokens_per_s"]["median"],
            "path": row["path"],
            "held": True,
        }
        for row in measured["speed"]
    ]
