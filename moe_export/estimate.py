"""What a recipe will need, from the config of its model alone.

Bytes on disk follow from the budget. Memory and time are estimates from the constants below, which
stand for a slow laptop: they are meant to say whether a run takes seconds or hours.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from moe_export.errors import CheckpointError
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.families.stored import stored_tensors
from moe_export.graph.predict import predicted_bytes
from moe_export.pipeline import steps_of
from moe_export.quantization import UNQUANTIZED, Quantization
from moe_export.recipe import Recipe

FLOPS_PER_S = 20e9
"""float32 arithmetic that torch sustains on small matrices with two cores."""

BYTES_PER_S = 200e6
"""Reading, converting and writing weights."""

PYTHON_BYTES = 100 << 20
"""An interpreter with numpy, onnx_ir and safetensors loaded."""

QUANTIZED_PER_S = {"rtn": 50e6, "mse": 10e6, "gptq": 2e6}
"""Parameters quantized in a second, by method."""

TORCH_BYTES = 450 << 20
"""The same with torch and transformers."""

STORED_BYTES = 2
"""Bytes of a parameter in a source checkpoint: float16 or bfloat16, as nearly all are."""


@dataclass(frozen=True)
class StageEstimate:
    """Prediction for one step."""

    stage: str
    disk_bytes: int
    peak_bytes: int
    seconds: float


def estimate(recipe: Recipe, model: Path) -> list[StageEstimate]:
    """Predictions for every step of a recipe.

    Raises:
        CheckpointError: the model has no readable config, or one of an unknown family.
    """
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model / 'config.json'} cannot be read ({error})") from error
    spec = spec_of(config)
    dense = _parameters(spec)
    kept = _budgeted(recipe, spec)
    pruned = _parameters(kept)
    quantized = replace(kept, quantization=_quantization(recipe))
    export = predicted_bytes(kept, recipe.export.dtype).total_bytes
    if recipe.quantize is not None:
        export += predicted_bytes(quantized, recipe.export.dtype).total_bytes
    if recipe.export.baseline:
        export += predicted_bytes(spec, recipe.export.dtype).total_bytes
    layer_bytes = 4 * dense // (spec.num_layers + 1)
    calibration_tokens = recipe.calibrate.sequences * recipe.calibrate.sequence_length
    passes = 1 + 2 * (2 if len(recipe.importance.scores) > 1 else 1)
    flops = 2.0 * _active_parameters(spec) * calibration_tokens * passes
    activations = recipe.importance.batch_tokens * (
        12 * spec.vocab_size + 40 * spec.num_layers * (spec.hidden_size + spec.top_k * _width(spec))
    )
    scored = sum(task.items for task in recipe.validate_.tasks) * calibration_tokens
    scored //= recipe.calibrate.sequences
    # Hidden states and inputs of all calibration tokens, beside one layer in torch.
    used_tokens = min(calibration_tokens, recipe.prune.calibration_tokens)
    layerwise = TORCH_BYTES - PYTHON_BYTES + 4 * 4 * spec.hidden_size * used_tokens
    by_stage = {
        "calibrate": (4 * calibration_tokens, PYTHON_BYTES, 1.0),
        "importance": (
            8 * sum(sum(layer) for layer in spec.widths) * len(recipe.importance.scores),
            TORCH_BYTES + 4 * dense + activations,
            5 + flops / FLOPS_PER_S,
        ),
        "plan": (100 * spec.num_layers * spec.num_experts, PYTHON_BYTES, 2.0),
        "prune": (
            STORED_BYTES * pruned,
            PYTHON_BYTES + layer_bytes + (layerwise if recipe.prune.refit_down else 0),
            1 + STORED_BYTES * (dense + pruned) / BYTES_PER_S,
        ),
        "quantize": (
            _quantized_bytes(quantized),
            PYTHON_BYTES + 2 * layer_bytes + (layerwise if _method(recipe) == "gptq" else 0),
            1 + pruned / QUANTIZED_PER_S[_method(recipe)],
        ),
        "export": (export, PYTHON_BYTES + layer_bytes, 2 + export / BYTES_PER_S),
        "validate": (
            1 << 16,
            TORCH_BYTES + 4 * pruned + export,
            20 + 6.0 * _active_parameters(spec) * scored / FLOPS_PER_S,
        ),
        "report": (1 << 20, 2 * PYTHON_BYTES, 5.0),
        "sweep": (1 << 20, 2 * PYTHON_BYTES, 5.0),
        "bakeoff": (1 << 20, TORCH_BYTES + 4 * dense, 0.0),
    }
    return [StageEstimate(step.folder, *by_stage[step.stage]) for step in steps_of(recipe)]


def _budgeted(recipe: Recipe, spec: ModelSpec) -> ModelSpec:
    """The model with its experts at the widths that a uniform plan would give them."""
    keep = 1.0
    if recipe.plan is not None and recipe.plan.keep is not None:
        keep = recipe.plan.keep
    elif recipe.plan is not None and recipe.plan.target_bytes is not None:
        whole = predicted_bytes(
            replace(spec, quantization=_quantization(recipe)), recipe.export.dtype
        )
        experts = sum(whole.experts_by_layer)
        keep = (recipe.plan.target_bytes - whole.total_bytes + experts) / max(experts, 1)
        keep = min(max(keep, 0.0), 1.0)
    widths = tuple(tuple(round(width * keep) for width in layer) for layer in spec.widths)
    return replace(spec, widths=widths)


def _method(recipe: Recipe) -> str:
    return recipe.quantize.method if recipe.quantize else "rtn"


def _quantization(recipe: Recipe) -> Quantization:
    section = recipe.quantize
    if section is None:
        return UNQUANTIZED
    # What the plan will choose is not known; the last choice is the smallest as a rule.
    experts = section.choices[-1] if section.experts == "auto" else section.experts
    return Quantization(experts, section.dense, section.embedding, section.group_size)


def _quantized_bytes(spec: ModelSpec) -> int:
    return sum(
        math.prod(tensor.shape) * (tensor.dtype.itemsize if tensor.dtype else STORED_BYTES)
        for tensor in stored_tensors(spec).values()
    )


def _parameters(spec: ModelSpec) -> int:
    return sum(tensor.elements for tensor in spec.tensors.values())


def _active_parameters(spec: ModelSpec) -> int:
    """Parameters that one token is multiplied with."""
    experts = sum(t.elements for t in spec.tensors.values() if t.tensor_class == "experts")
    return _parameters(spec) - experts + experts * spec.top_k // spec.num_experts


def _width(spec: ModelSpec) -> int:
    return max(width for layer in spec.widths for width in layer)
