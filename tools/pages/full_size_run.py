"""The measurements of the page full_size: a checkpoint, its runs, and what they took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from moe_export.artifacts.calibration import CalibrationSummary
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.measurements import Measurements
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.stage_mark import StageMark
from moe_export.artifacts.validation import Validation
from moe_export.checkpoint import Checkpoint
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.families.quantized import in_formats
from moe_export.families.stored import format_in
from moe_export.formats import GRIDS
from moe_export.quantization import KEYS as QUANTIZED_KEYS
from moe_export.quantization import Quantization
from moe_export.system.digests import file_sha256
from moe_export.system.machine import machine, versions
from moe_export.testing.synthetic_checkpoint import config_of
from tools.pages.stage_runs import carry_out, stage_figures, write_inputs

FAMILY, SIZE = "qwen2_moe", "qwen1.5-moe-a2.7b"
COPIED_STAGES = ("prune", "quantize", "export")

WORKERS_LAYERS, WORKERS_SEQUENCES, WORKERS_TURNS = 3, 32, 2

UNPRUNED = {
    "calibrate.sequences": 1,
    "importance.scores": "[magnitude]",
    "plan": "{keep: 1.0, score: magnitude}",
}
"""Changes to the recipe that remove nothing and compute no gradient."""


def against_dense(home: Path) -> dict[str, Any]:
    """Result of `moe-export bench` on the pruned and the unpruned model."""
    carry_out(home / "recipe.yaml", home / "dense", "export", UNPRUNED)
    variants = [
        f"{name}={home / run / 'export' / 'quantized'}"
        for name, run in (("pruned", "run"), ("dense", "dense"))
    ]
    out = home / "turns.json"
    options = ["--threads", "2", "--batch", "1", "--repeats", "5", "--json", str(out)]
    command = [sys.executable, "-m", "moe_export", "bench", *variants, *options]
    subprocess.run(command, check=True)
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def shared_out(home: Path) -> dict[str, Any]:
    """Median seconds of scoring three layers with one process and with two, one thread each.

    The two take turns; `same_bytes` is True if all of them wrote the same bytes.
    """
    home = home / "workers"
    prepare(home, WORKERS_LAYERS)
    times: dict[int, list[float]] = {1: [], 2: []}
    digests = set()
    for turn in range(WORKERS_TURNS):
        for processes, walls_s in times.items():
            run = home / f"{processes}-{turn}"
            launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            command = [sys.executable, "-m", *launcher, "-m", "moe_export", "run"]
            command += [str(home / "recipe.yaml"), "--directory", str(run), "--until", "plan"]
            command += ["--set", f"calibrate.sequences={WORKERS_SEQUENCES}"]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            walls_s.append(StageMark.load(run / "importance").measured.wall_s)
            files = (run / "importance" / Importance.FILE, run / "plan" / Plan.FILE)
            digests.add(tuple(map(file_sha256, files)))
    return {
        "layers": WORKERS_LAYERS,
        "tokens": CalibrationSummary.load(run / "calibrate").tokens,
        "wall_s": {str(processes): median(walls_s) for processes, walls_s in times.items()},
        "same_bytes": len(digests) == 1,
    }


def prepare(home: Path, layers: int | None) -> None:
    """Writes the checkpoint, the text and the recipe; files that are there are kept."""
    write_inputs(home, config_of(FAMILY, SIZE, layers))


def collect(home: Path) -> dict[str, Any]:
    """Figures of a finished run."""
    run = home / "run"
    stages = stage_figures(home)
    checkpoint = Checkpoint(home / "checkpoint")
    spec = spec_of(checkpoint.config)
    measurements = Measurements.load(run / "validate").plain()
    results = Validation.load(run / "validate").providers["cpu"].plain()
    copied = copy_rate(home)
    checkpoint_bytes = sum(info.size_bytes for info in checkpoint.tensors.values())
    read = checkpoint_bytes + sum(stages[s]["output_bytes"] for s in COPIED_STAGES[:-1])
    moved = read + sum(stages[s]["output_bytes"] for s in COPIED_STAGES)
    plan = Plan.load(run / "plan")
    kept = replace(spec, widths=tuple(layer.widths for layer in plan.layers))
    settings = StageMark.load(run / "quantize").identity.settings
    formats = Quantization(**{key: settings[key] for key in QUANTIZED_KEYS if key in settings})
    return {
        "machine": machine(),
        "versions": versions(),
        "layers": spec.num_layers,
        "checkpoint_bytes": checkpoint_bytes,
        "calibration_tokens": CalibrationSummary.load(run / "calibrate").tokens,
        "kept": plan.kept,
        "stages": stages,
        "copy": {
            "bytes_per_s": copied,
            "moved_bytes": moved,
            # A copied byte is read and written.
            "cp_s": moved / 2 / copied,
            "stages_s": sum(stages[s]["wall_s"] for s in COPIED_STAGES),
        },
        "model": measurements["memory"][-1] | {"speed": measurements["speed"]},
        "parity": results["parity"]["quantized"],
        "greedy": results["greedy"]["quantized"],
        "read_per_token_bytes": {
            "float16": {"dense": per_token(spec), "pruned": per_token(kept)},
            "quantized": {
                "dense": per_token(in_formats(spec, formats)),
                "pruned": per_token(in_formats(kept, formats)),
            },
            "quantized, experts as in calibration": as_chosen(plan),
        },
    }


def as_chosen(plan: Plan) -> dict[str, int]:
    """Bytes read for a token, dense and pruned, with experts chosen as often as in calibration."""
    models = plan.export_bytes["float16"]
    assert models.quantized is not None
    assert models.before_quantized is not None
    return {
        "dense": models.before_quantized.active_bytes_per_token,
        "pruned": models.quantized.active_bytes_per_token,
    }


def per_token(spec: ModelSpec) -> float:
    """Bytes of weights that decoding one token reads, every expert chosen equally often."""
    total = 0.0
    for name, tensor in spec.tensors.items():
        share = spec.top_k / spec.num_experts if tensor.expert is not None else 1
        if tensor.role != "embedding" or spec.tied_embeddings:
            bits = bits_of(format_in(spec, name), spec.quantization.group_size)
            total += tensor.elements * bits / 8 * share
    return total


def bits_of(format_name: str | None, group_size: int) -> float:
    """Bits of one weight, with its share of a group's scale and zero point.

    Args:
        format_name: Format; None for float16.
        group_size: Weights that share a scale.
    """
    if format_name is None:
        return 16
    grid = GRIDS[format_name]
    return grid.storage_bits + (16 + grid.storage_bits * grid.has_zero_point) / group_size


def copy_rate(home: Path) -> float:
    """Bytes per second of `cp` from disk to disk, with a shard that is not in the page cache."""
    source = min((home / "checkpoint").glob("*.safetensors"))
    target = home / "copy"
    with source.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.monotonic()
    subprocess.run(["cp", source.resolve(), target], check=True)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    rate = source.stat().st_size / (time.monotonic() - started)
    target.unlink()
    return rate
