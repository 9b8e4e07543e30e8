"""A width for every expert, and what the exported model will weigh."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.base import save_json
from moe_export.artifacts.exchange import load_exchange
from moe_export.artifacts.importance import load_importance
from moe_export.artifacts.planned import SHARED_EXPERT
from moe_export.checkpoint import Checkpoint
from moe_export.errors import PlanError
from moe_export.experts import ExpertTable, kept_rows
from moe_export.families import open_checkpoint
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.graph import predicted_bytes
from moe_export.planning.allocation import Allocation, Budget, Costs, allocate, format_errors
from moe_export.planning.blocks import WidthRule
from moe_export.planning.shares import Shares, token_shares
from moe_export.planning.widths import solve_widths
from moe_export.quantization import QUANTIZATION_KEY, UNQUANTIZED, Quantization
from moe_export.recipe import ROUNDING_SCORE, Dtype, Formats, Layout, PlanSettings
from moe_export.stages.job import Job

logger = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
DTYPES: tuple[Dtype, ...] = ("float32", "float16")


def run(job: Job[PlanSettings]) -> None:
    """Writes `plan.json`.

    Raises:
        PlanError: the budget cannot be met.
        RecipeError: a shared expert that the model has not is to be pruned.
    """
    settings = job.settings
    checkpoint, spec = open_checkpoint(job.model)
    found = load_importance(job.folders["importance"])
    for key in ("embedding", "lm_head") if settings.formats and spec.tied_embeddings else ():
        word = getattr(settings.formats, key)
        if word not in (None, "float"):
            raise PlanError(
                f"quantize.{key} is {word}, but the model's lm_head is the same table as its "
                f"embeddings, which is not quantized; leave {key} out"
            )
    if settings.score not in found.scores:
        raise PlanError(
            f"plan.score {settings.score} was not computed; it is one of "
            f"{', '.join(found.scores)}, or add it to importance.scores"
        )
    axis = Axis(spec, settings.prunes_shared)
    scores = found.scores[settings.score]
    unknown = [np.flatnonzero(tokens == 0).tolist() for tokens in found.tokens_per_expert]
    _check_rows(scores, axis)
    ranked = rank_unknown(scores, axis, unknown, settings.unknown)
    rule = WidthRule.of(settings)
    quantization = formats_of(settings)
    shares = token_shares(found.tokens_per_expert, spec.top_k)
    loss = None
    if settings.is_solved:
        rounding = _rounding(found.scores, job.folders["importance"], settings)
        solved = _solve(checkpoint, axis, ranked, rounding, shares, settings)
        widths, quantization = solved.widths, solved.quantization
        loss = solved.loss
    elif settings.target_bytes is None:
        assert settings.keep is not None
        widths = solve_widths(ranked, axis.tables, round(settings.keep * axis.rows), rule)
    else:
        widths = _fit_bytes(ranked, axis, settings, rule)
    for layer, experts in enumerate(unknown):
        if experts:
            verb = (
                "kept whole where the budget allows"
                if settings.unknown == "keep"
                else "emptied first"
            )
            logger.warning(
                "layer %d: no calibration token reached experts %s; they are %s",
                layer,
                experts,
                verb,
            )
    pruned = axis.resized(widths)
    after = pruned.spec
    models = {"before": spec, "after": after}
    if settings.formats is not None:
        models["quantized"] = replace(after, quantization=quantization)
        models["before_quantized"] = replace(spec, quantization=quantization)
    outcome = _outcome(axis, pruned, checkpoint, scores, unknown, settings)
    outcome |= {
        "export_bytes": _sizes(models, shares, layout_of(settings)),
        "predicted_loss": loss,
    }
    for layer in outcome["layers"]:
        layer["expert_bytes"] = {
            dtype: sizes["after"]["experts_by_layer"][layer["layer"]]
            for dtype, sizes in outcome["export_bytes"].items()
        }
    if settings.formats is not None:
        outcome |= {QUANTIZATION_KEY: quantization.as_config()}
    save_json(job.out / PLAN_FILE, outcome)


def _check_rows(scores: list[NDArray[np.float64]], axis: Axis) -> None:
    """Stops unless importance is known of just the rows that are ranked."""
    for layer, (layer_R, table) in enumerate(zip(scores, axis.tables, strict=True)):
        if layer_R.shape != (table.rows,):
            raise PlanError(
                f"layer {layer}: importance is known of {len(layer_R)} dimensions, the plan ranks "
                f"{table.rows}; run from the importance stage"
            )


def _rounding(
    scores: dict[str, list[NDArray[np.float64]]], folder: Path, settings: PlanSettings
) -> list[NDArray[np.float64]] | None:
    """What rounding costs in the currency of dropping, where formats are to be chosen by it."""
    if not settings.chooses_formats:
        return None
    if ROUNDING_SCORE not in scores:
        raise PlanError(
            f"quantize.experts: auto needs the score {ROUNDING_SCORE}, which the importance stage "
            "has not computed; run from the importance stage"
        )
    rates = load_exchange(folder).rates
    return [rate * layer_R for rate, layer_R in zip(rates, scores[ROUNDING_SCORE], strict=True)]


def _solve(
    checkpoint: Checkpoint,
    axis: Axis,
    ranked: list[NDArray[np.float64]],
    rounding: list[NDArray[np.float64]] | None,
    shares: Shares,
    settings: PlanSettings,
) -> Allocation:
    """The widths, and the formats if the plan chooses them, that lose least."""
    assert settings.dtype is not None
    formats = settings.formats or Formats(experts="float")
    names = formats.choices if formats.is_auto else (formats.experts,)
    errors = [
        format_errors(checkpoint, axis.spec, layer, names, formats.group_size)
        for layer in range(axis.spec.num_layers)
    ]
    target = settings.target_bytes or settings.target_active_bytes
    assert target is not None
    budget = Budget(
        size_bytes=target,
        active=settings.target_active_bytes is not None,
        dtype=settings.dtype,
        layout=layout_of(settings),
    )
    costs = Costs(importance=ranked, rounding=rounding, shares=shares, errors=errors)
    return allocate(axis, costs, formats.quantization("float"), budget, WidthRule.of(settings))


def _sizes(
    models: dict[str, ModelSpec], shares: list[NDArray[np.float64]], layout: Layout
) -> dict[Dtype, dict[str, dict[str, Any]]]:
    """By dtype and model: bytes in all, by class and layer, and those that a token reads."""
    sizes: dict[Dtype, dict[str, dict[str, Any]]] = {}
    for dtype in DTYPES:
        sizes[dtype] = {}
        for when, model in models.items():
            found = predicted_bytes(model, dtype, layout)
            active = found.active_bytes(model, shares)
            sizes[dtype][when] = found.as_dict() | {"active_bytes_per_token": active}
    return sizes


def rank_unknown(
    scores: list[NDArray[np.float64]],
    axis: Axis,
    unknown: list[list[int]],
    rule: str,
) -> list[NDArray[np.float64]]:
    """The scores with experts that no token reached ranked first (`keep`) or last (`prune`)."""
    ranked = [layer.copy() for layer in scores]
    for layer_R, table, experts in zip(ranked, axis.tables, unknown, strict=True):
        for expert in experts:
            layer_R[table.slice_of(expert)] = np.inf if rule == "keep" else -np.inf
    return ranked


def _fit_bytes(
    ranked: list[NDArray[np.float64]],
    axis: Axis,
    settings: PlanSettings,
    rule: WidthRule,
) -> list[list[int]]:
    """The widest plan whose exported weights fit in the byte budget."""
    assert settings.target_bytes is not None
    assert settings.dtype is not None
    target = settings.target_bytes
    axis = replace(axis, spec=replace(axis.spec, quantization=formats_of(settings)))
    dtype, layout = settings.dtype, layout_of(settings)
    fixed = predicted_bytes(axis.emptied().spec, dtype, layout).total_bytes
    least, most = 0, axis.rows
    if fixed > target:
        raise PlanError(
            f"plan.target_bytes is {target}, but {fixed} bytes lie outside the experts that are "
            f"pruned, in {settings.dtype}; raise it above that"
        )
    # The floor is left to the final plan. Alignment makes bytes not quite linear in rows, so the
    # most rows that fit are searched for.
    while least < most:
        rows = (least + most + 1) // 2
        widths = solve_widths(ranked, axis.tables, rows, replace(rule, min_width=0))
        size = predicted_bytes(axis.resized(widths).spec, dtype, layout).total_bytes
        least, most = (rows, most) if size <= target else (least, rows - 1)
    return solve_widths(ranked, axis.tables, least, rule)


def layout_of(settings: PlanSettings) -> Layout:
    """How the exported weights will be laid out."""
    return settings.layout or "portable"


def formats_of(settings: PlanSettings) -> Quantization:
    """What the exported weights will be stored in."""
    formats = settings.formats
    if formats is None or formats.is_auto:
        return UNQUANTIZED
    return formats.quantization()


def _outcome(
    axis: Axis,
    pruned: Axis,
    checkpoint: Checkpoint,
    scores: list[NDArray[np.float64]],
    unknown: list[list[int]],
    settings: PlanSettings,
) -> dict[str, Any]:
    spec, after = axis.spec, pruned.spec
    layers: list[dict[str, Any]] = []
    for layer in range(spec.num_layers):
        table, new = (model.tables[layer] for model in (axis, pruned))
        layers.append(
            {
                "layer": layer,
                "widths": list(after.widths[layer]),
                "rows_before": table.rows,
                "rows_after": new.rows,
                "importance_kept": _share_kept(scores[layer], table, new.widths),
                "unknown_experts": unknown[layer],
            }
        )
        if axis.has_shared:
            layers[-1]["shared_width"] = after.shared_widths[layer]
            layers[-1]["shared_width_before"] = spec.shared_widths[layer]
    before_rows = sum(layer["rows_before"] for layer in layers)
    after_rows = sum(layer["rows_after"] for layer in layers)
    return {
        **({SHARED_EXPERT: settings.shared_expert} if axis.has_shared else {}),
        "score": settings.score,
        "scope": settings.scope,
        "unit": settings.unit,
        "rows_before": before_rows,
        "rows_after": after_rows,
        "kept": after_rows / before_rows,
        "widths_before": [list(layer) for layer in spec.widths],
        "layers": layers,
        "checkpoint_tensor_bytes": _tensor_bytes(checkpoint, after),
    }


def _share_kept(
    scores_R: NDArray[np.float64], table: ExpertTable, widths: Sequence[int]
) -> float | None:
    """The share of a layer's known importance that its kept dimensions hold; None if all is 0."""
    known = np.where(np.isfinite(scores_R), scores_R, 0.0)
    kept = kept_rows(scores_R, table, widths)
    held = sum(float(known[table.slice_of(e)][rows].sum()) for e, rows in enumerate(kept))
    return held / float(known.sum()) if known.sum() > 0 else None


def _tensor_bytes(checkpoint: Checkpoint, after: ModelSpec) -> int:
    """Bytes of all tensors of the pruned checkpoint, each in the dtype it is stored in."""
    return sum(
        tensor.elements * checkpoint.tensors[name].dtype.itemsize
        for name, tensor in after.tensors.items()
    )
