"""The measurements of the page shapes: runs of the main job, and states after decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moe_export.artifacts.calibration import CalibrationSummary
from moe_export.artifacts.report import Report
from moe_export.artifacts.validation import Validation
from moe_export.checkpoint import read_config
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.families.states import fixed_bytes, token_bytes
from moe_export.ort.session import OrtModel
from moe_export.system.machine import machine, versions
from moe_export.testing.synthetic_checkpoint import config_of
from tools.pages.stage_runs import STAGES, carry_out, stage_figures, write_inputs

VOCABULARY = 32_000
PROMPT_TOKENS, NEW_TOKENS = 64, 32


class Shape(NamedTuple):
    """A released model and the number of its first layers that are made.

    Attributes:
        family: model_type.
        size: Name of its size, see `SIZES`.
        layers: Number of layers, in which every kind of mixer occurs.
        title: Name of the released model.
    """

    family: str
    size: str
    layers: int
    title: str


MODELS = {
    shape.family: shape
    for shape in (
        Shape("lfm2_moe", "lfm2-8b-a1b", 4, "LFM2-8B-A1B"),
        Shape("glm4_moe_lite", "glm-4.7-flash", 3, "GLM-4.7-Flash"),
        Shape("qwen3_5_moe_text", "qwen3.5-35b-a3b", 4, "Qwen3.5-35B-A3B"),
    )
}
"""Models of the page, by family."""


def figures_of(name: str, home: Path, sequences: int) -> dict[str, Any]:
    """Figures of one model; stages that ran already are not run again.

    Args:
        name: Key of `MODELS`.
        home: Folder of its files.
        sequences: Number of calibration sequences of 512 tokens.
    """
    shape = MODELS[name]
    config = config_of(shape.family, shape.size, shape.layers, VOCABULARY)
    write_inputs(home, config, sequences)
    for stage in STAGES:
        carry_out(home / "recipe.yaml", home / "run", stage)
    spec = spec_of(read_config(home / "checkpoint"))
    exported = home / "run" / "export" / "quantized"
    results = Validation.load(home / "run" / "validate").providers["cpu"].plain()
    return {
        "title": shape.title,
        "machine": machine(),
        "versions": versions(),
        "released_layers": config_of(shape.family, shape.size)["num_hidden_layers"],
        "mixers": list(spec.mixers),
        "moe_layers": sum(map(bool, spec.widths)),
        "calibration_tokens": CalibrationSummary.load(home / "run" / "calibrate").tokens,
        "checkpoint_bytes": 2 * spec.parameters,
        "stages": stage_figures(home),
        "resident": resident(home / "run" / "report"),
        "states": predicted_states(spec) | {"found": found_states(exported)},
        "parity": results["parity"]["quantized"],
    }


def resident(report: Path) -> dict[str, int]:
    """Steady resident memory of the exported model in ONNX Runtime, predicted and found."""
    (memory,) = [v for v in Report.load(report).memory.variants if v.variant == "quantized"]
    (held,) = memory.resident
    return {
        "predicted": memory.predicted_resident_bytes,
        "found": held.steady_resident_bytes,
        "file": memory.weights_bytes,
    }


def predicted_states(spec: ModelSpec) -> dict[str, Any]:
    """Predicted bytes of the states of one sequence in float16."""
    per_token, fixed = token_bytes(spec, "float16"), fixed_bytes(spec, "float16")
    return {"predicted": {"token_bytes": per_token, "fixed_bytes": fixed}}


def found_states(exported: Path) -> dict[str, int]:
    """Bytes of the state tensors of one sequence after a prompt, and after decoding from there.

    What grew was divided by the number of tokens; the rest does not grow.
    """
    model = OrtModel(exported, threads=2)
    ids_1S = np.arange(PROMPT_TOKENS, dtype=np.int64)[None]
    logits, cache = model.step(ids_1S, np.ones((1, PROMPT_TOKENS), np.int64), model.empty_cache(1))
    before = held_bytes(cache)
    for length in range(PROMPT_TOKENS + 1, PROMPT_TOKENS + NEW_TOKENS + 1):
        chosen_11 = logits[:, -1:].argmax(-1)
        logits, cache = model.step(chosen_11, np.ones((1, length), np.int64), cache)
    grown, rest = divmod(held_bytes(cache) - before, NEW_TOKENS)
    assert rest == 0, "the states grew unevenly"
    return {"token_bytes": grown, "fixed_bytes": before - PROMPT_TOKENS * grown}


def held_bytes(cache: dict[str, Any]) -> int:
    """Bytes of all tensors of a cache."""
    return sum(value.numpy().nbytes for value in cache.values())
