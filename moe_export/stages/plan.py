"""The plan stage: a width for every expert, and the bytes of the exported models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.exchange import Exchange
from moe_export.artifacts.formats import TensorFormats
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.plan import Plan, PlanLayer, PlannedModels
from moe_export.artifacts.ranking import Ranking
from moe_export.artifacts.weight_bytes import PlannedBytes
from moe_export.checkpoint import Checkpoint
from moe_export.errors import PlanError
from moe_export.experts import ExpertTable, kept_rows
from moe_export.families import open_checkpoint
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.families.quantized import in_formats
from moe_export.families.stored import stored_dtype
from moe_export.planning.planned import plan_widths, planned_bytes, rank_unknown, unreached
from moe_export.planning.shares import token_shares
from moe_export.recipe import AUTO, ROUNDING_OF, Dtype, PlanSettings
from moe_export.stages.job import Job

logger = logging.getLogger(__name__)

DTYPES: tuple[Dtype, ...] = ("float32", "float16")


def run(job: Job[PlanSettings]) -> None:
    """Writes the plan.

    Raises:
        PlanError: the budget cannot be met.
        RecipeError: the shared expert is to be pruned and the model has none, or the embedding is
            to be quantized and is the lm_head in floats too.
    """
    settings = _chosen(job)
    checkpoint, spec = open_checkpoint(job.model)
    importance = Importance.load(job.folders["importance"])
    if settings.score not in importance.scores:
        raise PlanError(
            f"plan.score {settings.score} was not computed; it is one of "
            f"{', '.join(importance.scores)}, or add it to importance.scores"
        )
    axis = Axis(spec, settings.prunes_shared_of(spec.has_shared_expert)).routed_to(settings.top_k)
    scores, tokens_per_expert = importance.scores[settings.score], importance.tokens_per_expert
    unknown = unreached(tokens_per_expert)
    _check_rows(scores, axis)
    ranked = rank_unknown(scores, axis, unknown, settings.unknown)
    rounding = _rounding(importance.scores, job.folders["importance"], settings)
    planned = plan_widths(checkpoint, axis, ranked, tokens_per_expert, settings, rounding)
    _warn_of_unreached(unknown, settings)
    quantization = planned.quantization
    pruned = axis.resized(planned.widths)
    after = pruned.spec
    models = {"before": spec, "after": after}
    if settings.formats is not None:
        models["quantized"] = in_formats(after, quantization)
        models["before_quantized"] = in_formats(spec, quantization)
    export_bytes = _export_bytes(models, tokens_per_expert, settings)
    layers = _layers(axis, pruned, scores, unknown, export_bytes)
    rows_before = sum(layer.rows_before for layer in layers)
    rows_after = sum(layer.rows_after for layer in layers)
    Plan(
        shared_expert="prune" if axis.has_shared else None,
        top_k=settings.top_k,
        top_k_before=None if settings.top_k is None else spec.top_k,
        score=settings.score,
        scope=settings.scope,
        unit=settings.unit,
        rows_before=rows_before,
        rows_after=rows_after,
        kept=rows_after / rows_before,
        widths_before=spec.widths,
        layers=layers,
        checkpoint_tensor_bytes=_tensor_bytes(checkpoint, after),
        export_bytes=export_bytes,
        predicted_loss=planned.loss,
        quantization=TensorFormats.of(quantization) if settings.formats is not None else None,
    ).save(job.out)


def _chosen(job: Job[PlanSettings]) -> PlanSettings:
    """The settings, with the score and scope that the ranking stage chose if it ran."""
    if job.settings.score != AUTO:
        return job.settings
    choice = Ranking.load(job.folders["ranking"]).choice
    return job.settings.model_copy(update={"score": choice.score, "scope": choice.scope})


def _warn_of_unreached(unknown: list[list[int]], settings: PlanSettings) -> None:
    fate = "kept whole where the budget allows" if settings.unknown == "keep" else "emptied first"
    for layer, experts in enumerate(unknown):
        if experts:
            logger.warning(
                "layer %d: no calibration token reached experts %s; they are %s",
                layer,
                experts,
                fate,
            )


def _check_rows(scores: list[NDArray[np.float64]], axis: Axis) -> None:
    """Checks that every layer has one score for each row that is ranked."""
    for layer, (layer_R, table) in enumerate(zip(scores, axis.tables, strict=True)):
        if layer_R.shape != (table.rows,):
            raise PlanError(
                f"layer {layer}: importance is known of {len(layer_R)} dimensions, the plan ranks "
                f"{table.rows}; run from the importance stage"
            )


def _rounding(
    scores: dict[str, list[NDArray[np.float64]]], folder: Path, settings: PlanSettings
) -> list[NDArray[np.float64]] | None:
    """Cost of rounding each row in the unit of dropping; None unless formats are to be chosen."""
    if not settings.chooses_formats:
        return None
    name = ROUNDING_OF[settings.score]
    if name not in scores:
        raise PlanError(
            f"quantize.experts: auto needs the score {name}, which the importance stage "
            "has not computed; run from the importance stage"
        )
    rates = Exchange.load(folder).rates
    return [rate * layer_R for rate, layer_R in zip(rates, scores[name], strict=True)]


def _export_bytes(
    models: dict[str, ModelSpec],
    tokens_per_expert: Sequence[NDArray[np.int64]],
    settings: PlanSettings,
) -> dict[Dtype, PlannedModels]:
    """Bytes of the exported models, by dtype.

    Args:
        models: the models by the field of `PlannedModels` that they are for.
        tokens_per_expert: number of calibration tokens, [E] per layer.
        settings: settings that say how weights are laid out.
    """

    def planned(model: ModelSpec, dtype: Dtype) -> PlannedBytes:
        predicted = planned_bytes(model, dtype, settings)
        shares = token_shares(tokens_per_expert, model)
        return PlannedBytes(
            total_bytes=predicted.total_bytes,
            by_class=predicted.by_class,
            experts_by_layer=predicted.experts_by_layer,
            active_bytes_per_token=predicted.active_bytes(model, shares),
        )

    return {
        dtype: PlannedModels(**{field: planned(model, dtype) for field, model in models.items()})
        for dtype in DTYPES
    }


def _layers(
    axis: Axis,
    pruned: Axis,
    scores: list[NDArray[np.float64]],
    unknown: list[list[int]],
    export_bytes: dict[Dtype, PlannedModels],
) -> tuple[PlanLayer, ...]:
    """The plan of each layer.

    Args:
        axis: the unpruned model.
        pruned: the pruned model.
        scores: importance as measured, one [R] per layer.
        unknown: experts that no token reached, one list per layer.
        export_bytes: bytes of the exported models, by dtype.
    """
    spec, after = axis.spec, pruned.spec
    layers = []
    for layer in range(spec.num_layers):
        table, new = (model.tables[layer] for model in (axis, pruned))
        layers.append(
            PlanLayer(
                layer=layer,
                widths=after.widths[layer],
                rows_before=table.rows,
                rows_after=new.rows,
                importance_kept=_share_kept(scores[layer], table, new.widths),
                unknown_experts=tuple(unknown[layer]),
                shared_width=after.shared_widths[layer] if axis.has_shared else None,
                shared_width_before=spec.shared_widths[layer] if axis.has_shared else None,
                expert_bytes={
                    dtype: models.after.experts_by_layer[layer]
                    for dtype, models in export_bytes.items()
                },
            )
        )
    return tuple(layers)


def _share_kept(
    scores_R: NDArray[np.float64], table: ExpertTable, widths: Sequence[int]
) -> float | None:
    """The fraction of a layer's known importance that is kept; None if all of it is 0."""
    known = np.where(np.isfinite(scores_R), scores_R, 0.0)
    kept = kept_rows(scores_R, table, widths)
    held = sum(float(known[table.slice_of(e)][rows].sum()) for e, rows in enumerate(kept))
    return held / float(known.sum()) if known.sum() > 0 else None


def _tensor_bytes(checkpoint: Checkpoint, after: ModelSpec) -> int:
    """Bytes of all tensors of the pruned checkpoint, each in the dtype of the source."""
    return sum(
        tensor.elements * stored_dtype(checkpoint, after, name).itemsize
        for name, tensor in after.tensors.items()
    )
