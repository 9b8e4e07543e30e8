"""The native library under ONNX Runtime's CUDA provider."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from moe_export.artifacts.measurements import Measurements
from moe_export.gpu_check.library import cases_of
from moe_export.gpu_check.parts import DEMO_RECIPE
from moe_export.op.library import register
from moe_export.ort.benchmark import probe
from moe_export.ort.decoding import generate
from moe_export.ort.measuring import Setup
from moe_export.ort.session import OrtModel
from moe_export.recipe import SpeedSettings
from moe_export.testing.cases import inputs_of
from moe_export.testing.cuda_kinds import PACKAGED_KINDS
from moe_export.testing.executors import feeds, one_node_model, run_reference
from moe_export.testing.tolerance import error_bound

THROUGH_ONNX_RUNTIME = (
    *("one_token", "many_tokens", "relu2_and_a_shared_expert"),
    *("scaled_units_and_one_token", "scaled_units_beside_a_shared_expert"),
    *("scaled_up_and_one_token", "scaled_up_and_units_beside_a_shared_expert"),
)

# Float16 errs by 0.01 in the logits of the demo model, and may turn a token over.
DEMO_WORDS = (
    "validate.providers=[cuda]",
    "export.dtype=float16",
    "validate.gates.max_logit_error=0.05",
    "validate.gates.min_greedy_agreement=0.9",
)


def _session(model: bytes | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    register(options)
    session = onnxruntime.InferenceSession(model, options, providers=["CUDAExecutionProvider"])
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    return session


def cases() -> list[dict[str, Any]]:
    """Checks a few cases in every packaged kind; `conformance` covers all without ONNX Runtime."""
    rows = []
    for kind in PACKAGED_KINDS:
        failures = []
        for case in (c for c in cases_of(kind) if c.name in THROUGH_ONNX_RUNTIME):
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


def demo() -> list[dict[str, Any]]:
    """Runs the demo recipe on the device with captured steps, then decodes with each cache."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "moe_export", "run", str(DEMO_RECIPE), "--run", folder]
        for word in DEMO_WORDS:
            command += ["--set", word]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            words = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return [
                {"what": "demo recipe", "exit_code": done.returncode, "words": words, "held": False}
            ]
        measurements = Measurements.load(Path(folder) / "validate")
        speed = list(measurements.speed)
        pruned = Path(folder) / "export" / "pruned"
        tokens = {cache: _greedy(pruned, cache) for cache in ("growing", "static", "captured")}
        for cache in ("growing", "static"):
            settings = SpeedSettings(threads=(1,), repeats=3)
            setup = Setup(
                directory=pruned, provider="cuda", operator="native", cache=cache, speed=settings
            )
            speed += probe(setup).speed
    rows: list[dict[str, Any]] = [
        {
            "what": f"demo {row.variant}",
            "batch": row.batch_size,
            "decode_tokens_per_s": row.decode_tokens_per_s.median,
            "path": row.path,
        }
        for row in speed
    ]
    rows += [
        {
            "what": f"demo {row.variant}",
            "device_loaded_bytes": row.device_loaded_bytes,
            "device_peak_bytes": row.device_peak_bytes,
            "device_kv_cache_bytes": row.device_kv_cache_bytes,
        }
        for row in measurements.memory
    ]
    rows += [
        {"what": f"greedy tokens, {cache} and growing", "held": tokens[cache] == tokens["growing"]}
        for cache in ("static", "captured")
    ]
    return rows


def _greedy(directory: Path, cache: str) -> list[int]:
    model = OrtModel(directory, "cuda", cache=cache)
    return list(generate(model, list(range(40)), 64, []))
