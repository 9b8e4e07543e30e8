"""What a recipe will need, from the config of its model alone.

Bytes on disk follow from the budget. Memory and time are estimates from the constants below, which
stand for two idle cores of a server: they are meant to say whether a run takes seconds or hours.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moe_export.artifacts.exchange import EXCHANGE_TOKENS
from moe_export.artifacts.planned import require_shared_expert
from moe_export.artifacts.stage_mark import PredictedCost
from moe_export.errors import CheckpointError
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.families.stored import stored_tensors
from moe_export.fitting.limits import SMALL_MODEL_BYTES
from moe_export.graph.predict import predicted_bytes
from moe_export.quantization import UNQUANTIZED, Quantization
from moe_export.recipe import Recipe
from moe_export.runner.steps import steps_of
from moe_export.system.onednn import ROWS_AT_ONCE

FLOPS_PER_S = {"float32": 60e9, "bfloat16": 120e9}
"""Arithmetic that torch sustains on the matrices of experts with two cores, by dtype."""

COPIED_PER_S = 400e6
"""Bytes of weights read or written."""

EXPORTED_PER_S = 200e6
"""Bytes of weights converted, transposed and written."""

LIBRARY_BYTES = 6 << 20
"""Of the operator library, which is copied beside every exported model."""

PYTHON_BYTES = 100 << 20
"""An interpreter with numpy, onnx_ir and safetensors loaded."""

ACTIVATIONS = 8
"""Activations of an expert that a backward pass and the scores need, each of the expert's width."""

LOGIT_BYTES = 4 * 128 << 20
"""Logits of a chunk of tokens, and what the loss makes of them; see `passes.loss`."""

PRIMITIVES, PRIMITIVE_BYTES, KERNEL_BYTES = 1024, 800 << 10, 180 << 10
"""oneDNN, by which torch multiplies in bfloat16, makes code for every shape it meets. It keeps that
of so many shapes, with so many bytes each; and so many bytes of every shape there ever was. The
bytes are those of AMX, of other processors they are fewer; in float32 torch multiplies without it.
"""

QUANTIZED_PER_S = {"rtn": 200e6, "mse": 100e6, "gptq": 2e6}
"""Parameters quantized in a second, by method."""

TORCH_BYTES = 450 << 20
"""The same with torch and transformers."""

SCORE_LOSSES = {"fisher_margin": 1, "fisher": 1, "absgrad": 1}
"""Scores that need a backward pass."""

STORED_BYTES = 2
"""Bytes of a parameter in a source checkpoint: float16 or bfloat16, as nearly all are."""


@dataclass(frozen=True)
class StageEstimate:
    """Prediction for one step.

    Attributes:
        stage: its folder.
        disk_bytes: that it leaves.
        peak_bytes: resident memory.
        seconds: that it takes.
        partial_bytes: on the disk as well, until it ends.
    """

    stage: str
    disk_bytes: int
    peak_bytes: int
    seconds: float
    partial_bytes: int = 0

    def cost(self) -> PredictedCost:
        """Returns the predictions that the mark of the stage states beside its measurements."""
        return PredictedCost(
            wall_s=round(self.seconds, 1),
            peak_resident_bytes=self.peak_bytes,
            output_bytes=self.disk_bytes,
        )


def estimate(recipe: Recipe, model: Path) -> list[StageEstimate]:
    """Predictions for every step of a recipe.

    Raises:
        CheckpointError: the model has no readable config, or one of an unknown family.
        RecipeError: a shared expert that the model has not is to be pruned.
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
    dtype, layout = recipe.export.dtype, recipe.export.layout
    exported = [kept] if recipe.export.pruned else []
    exported += [quantized] if recipe.quantize is not None else []
    exported += [spec] if recipe.export.baseline else []
    export = sum(predicted_bytes(model, dtype, layout).total_bytes for model in exported)
    libraries = LIBRARY_BYTES * len(exported) if recipe.export.library else 0
    largest = STORED_BYTES * max(tensor.elements for tensor in spec.tensors.values())
    tokens = recipe.calibrate.sequences * recipe.calibrate.sequence_length
    scored = sum(task.items for task in recipe.validate_.tasks) * tokens
    scored //= recipe.calibrate.sequences
    # Hidden states and inputs of all calibration tokens, beside one layer in torch.
    used_tokens = min(tokens, recipe.prune.calibration_tokens)
    layerwise = (
        TORCH_BYTES
        - PYTHON_BYTES
        + 4 * _held_at_once(spec)
        + 4 * 4 * spec.hidden_size * used_tokens
    )
    scores, states = _importance(recipe, spec, tokens)
    distilling = _distilling(recipe, spec, kept, used_tokens)
    partial = {"importance": states, "prune": distilling.partial_bytes}
    by_stage: dict[str, tuple[int, int, float]] = {
        "calibrate": (4 * tokens, PYTHON_BYTES, 1.0),
        "importance": scores,
        "plan": (100 * spec.num_layers * spec.num_experts, PYTHON_BYTES, 2.0),
        "prune": (
            STORED_BYTES * pruned,
            PYTHON_BYTES
            + 2 * largest
            + max(layerwise if recipe.prune.refit_down else 0, distilling.peak_bytes),
            1 + STORED_BYTES * (dense + pruned) / COPIED_PER_S + distilling.seconds,
        ),
        "quantize": (
            _quantized_bytes(quantized),
            PYTHON_BYTES + 2 * largest + (layerwise if _method(recipe) == "gptq" else 0),
            1 + pruned / QUANTIZED_PER_S[_method(recipe)],
        ),
        "export": (export + libraries, 2 * PYTHON_BYTES + 2 * largest, 2 + export / EXPORTED_PER_S),
        "validate": (
            1 << 16,
            # Torch with a matrix twice while it is read, then the exported models.
            TORCH_BYTES + LOGIT_BYTES + max(8 * _held_at_once(kept), export),
            20 + 6.0 * _active_parameters(spec) * scored / FLOPS_PER_S["float32"],
        ),
        "report": (1 << 20, 2 * PYTHON_BYTES, 5.0),
        "sweep": (1 << 20, 2 * PYTHON_BYTES, 5.0),
        "bakeoff": (1 << 20, TORCH_BYTES + 4 * dense, 0.0),
    }
    return [
        StageEstimate(step.folder, *by_stage[step.stage], partial.get(step.stage, 0))
        for step in steps_of(recipe)
    ]


def _importance(recipe: Recipe, spec: ModelSpec, tokens: int) -> tuple[tuple[int, int, float], int]:
    """As the other stages, and the bytes of states between layers.

    A layer goes forward over all tokens, and later forward again and back.
    """
    settings = recipe.importance
    element_bytes = 4 if settings.dtype == "float32" else 2
    losses = min(2, sum(SCORE_LOSSES.get(score, 0) for score in settings.scores))
    passes = 2 + losses if losses else 1
    flops = 2.0 * _active_parameters(spec) * tokens * passes
    if recipe.quantize is not None and recipe.quantize.experts == "auto":
        # Each layer rounded alone goes on from it, beside the model as it is, all layers rounded,
        # and some shares dropped.
        flops += (
            2.0
            * _active_parameters(spec)
            * min(tokens, EXCHANGE_TOKENS)
            * (spec.num_layers / 2 + 6)
        )
    batch_tokens = min(settings.batch_tokens, tokens)
    activations = _activations(spec)
    peak = TORCH_BYTES + element_bytes * (
        _held_at_once(spec) + batch_tokens * activations * (1 if losses else 0)
    )
    shared = recipe.plan is not None and recipe.plan.prunes_shared
    if settings.dtype == "bfloat16":
        peak += _kernels(spec, tokens, batch_tokens, 4 if losses else 2)
    rows = sum(spec.table(layer, shared=shared).rows for layer in range(spec.num_layers))
    states = spec.num_layers + 1 + 3 * losses if losses else 2
    needs = (
        8 * rows * len(settings.scores),
        peak + (LOGIT_BYTES if losses else 0),
        5 + flops / FLOPS_PER_S[settings.dtype],
    )
    return needs, tokens * spec.hidden_size * element_bytes * states


def _kernels(spec: ModelSpec, tokens: int, batch_tokens: int, products: int) -> int:
    """Bytes of code for experts, whose shapes are as many as the numbers of tokens sent to them,
    each filled up to a multiple of `ROWS_AT_ONCE`.

    Of the numbers that come up with random weights a third are new, until all have come up.
    """
    batches = math.ceil(tokens / batch_tokens)
    possible = math.ceil(batch_tokens / ROWS_AT_ONCE)
    counts = min(spec.num_layers * spec.num_experts * batches // 3, possible)
    shapes = products * counts
    return KERNEL_BYTES * shapes + PRIMITIVE_BYTES * min(shapes, PRIMITIVES)


def _distilling(recipe: Recipe, spec: ModelSpec, kept: ModelSpec, tokens: int) -> StageEstimate:
    """What distilling routers adds to the prune stage.

    The unpruned model goes forward once; a step goes forward, forward again, and back to inputs
    alone; and each time reads the layers, unless the pruned model stays in memory.
    """
    settings = recipe.prune.distill_router
    if settings is None:
        return StageEstimate("prune", 0, 0, 0.0)
    step_tokens = min(settings.tokens_per_step, tokens)
    passes = 2 * tokens * _active_parameters(spec)
    passes += settings.steps * 6 * step_tokens * _active_parameters(kept)
    held, read = _held_at_once(spec), settings.steps * 2 * STORED_BYTES * _parameters(kept)
    if 4 * _parameters(kept) <= SMALL_MODEL_BYTES:
        held, read = max(held, _parameters(kept)), 0
    activations = _activations(kept)
    state_bytes = 4 * spec.hidden_size
    return StageEstimate(
        "prune",
        0,
        TORCH_BYTES - PYTHON_BYTES + 4 * (held + step_tokens * activations) + LOGIT_BYTES,
        passes / FLOPS_PER_S["float32"] + read / COPIED_PER_S,
        state_bytes * (3 * tokens + (spec.num_layers + 2) * step_tokens),
    )


def _activations(spec: ModelSpec) -> int:
    """Values of a token that a layer keeps for the way back."""
    shared_width = max(width or 0 for width in spec.shared_widths)
    return ACTIVATIONS * (spec.top_k * _width(spec) + shared_width) + 16 * spec.hidden_size


def _held_at_once(spec: ModelSpec) -> int:
    """Parameters of the largest layer, or of the head or the embeddings if there are more."""
    parts: dict[object, int] = {}
    for tensor in spec.tensors.values():
        part = tensor.role if tensor.layer is None else tensor.layer
        parts[part] = parts.get(part, 0) + tensor.elements
    return max(parts.values())


def _budgeted(recipe: Recipe, spec: ModelSpec) -> ModelSpec:
    """The model with its experts at the widths that a uniform plan would give them."""
    plan = recipe.plan
    if plan is None:
        return spec
    shared = plan.prunes_shared
    if shared:
        require_shared_expert(spec)

    def at(keep: float) -> ModelSpec:
        tables = (spec.table(layer, shared=shared) for layer in range(spec.num_layers))
        widths = [[round(width * keep) for width in table.widths] for table in tables]
        return spec.resized(widths, shared=shared)

    def size(model: ModelSpec) -> int:
        model = replace(model, quantization=_quantization(recipe))
        found = predicted_bytes(model, recipe.export.dtype, recipe.export.layout)
        if plan.target_active_bytes is None:
            return found.total_bytes
        share = spec.top_k / spec.num_experts
        return found.active_bytes(model, [np.full(len(w), share) for w in spec.widths])

    if plan.keep is not None:
        return at(plan.keep)
    target = plan.target_bytes or plan.target_active_bytes
    assert target is not None
    least, most = size(at(0.0)), size(spec)
    return at(min(max((target - least) / max(most - least, 1), 0.0), 1.0))


def _method(recipe: Recipe) -> str:
    return recipe.quantize.method if recipe.quantize else "rtn"


def _quantization(recipe: Recipe) -> Quantization:
    section = recipe.quantize
    if section is None:
        return UNQUANTIZED
    # What the plan will choose is not known; the last choice is the smallest as a rule.
    experts = section.choices[-1] if section.experts == "auto" else section.experts
    return section.quantization(experts)


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
