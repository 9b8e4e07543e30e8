"""Sections of a report about the model, its plan and the importance behind it.

Legend: R rows of a layer, E routed experts.
"""

from __future__ import annotations

import json
import statistics
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.importance import Importance
from moe_export.artifacts.plan import Plan, PlanLayer
from moe_export.artifacts.report_plan import (
    ActiveParameters,
    CoverageFacts,
    CurvePoint,
    ImportanceFacts,
    LayerWidths,
    ModelFacts,
    Parameters,
    PlanFacts,
)
from moe_export.errors import ArtifactError
from moe_export.experts import ExpertTable, descending, kept_rows
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.planning.shares import active_parameters, token_shares

CURVE_FRACTIONS = (0.001, 0.0025, 0.005, *(percent / 100 for percent in range(1, 101)))
"""Fractions of rows at which the cumulative curve is sampled, closer at its steep start."""


def model_facts(prune: Path, plan: Plan, importance: Importance) -> ModelFacts:
    """Gathers the sizes of the model before and after.

    Args:
        prune: folder of the pruned checkpoint.
        plan: plan that the checkpoint was pruned by.
        importance: importance with the calibration tokens that reached each expert.

    Raises:
        ArtifactError: `config.json` cannot be read.
    """
    after = spec_of(read_config(prune))
    before = plan.unpruned(after)
    tokens = importance.tokens_per_expert
    return ModelFacts(
        family=after.family.model_type,
        layers=after.num_layers,
        experts_per_layer=after.num_experts,
        experts_per_token=after.active_experts,
        experts_per_token_before=before.active_experts,
        hidden_size=after.hidden_size,
        vocabulary_tokens=after.vocab_size,
        parameters=Parameters(before=before.parameters, after=after.parameters),
        active_parameters_per_token=ActiveParameters(
            before=active_parameters(before, token_shares(tokens, before)),
            after=active_parameters(after, token_shares(tokens, after)),
        ),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Reads `config.json` of the pruned checkpoint.

    Raises:
        ArtifactError: the file cannot be read.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}); run the stage that writes it again"
        ) from error
    return config


def plan_facts(prune: Path, plan: Plan, importance: Importance) -> PlanFacts:
    """Gathers the plan with the spread of its widths, and the tokens that reached each expert.

    Layers without experts are left out. The arguments are those of `model_facts`.
    """
    pruned = spec_of(read_config(prune))
    before = plan.unpruned(pruned)
    shared_expert = "prune" if plan.prunes_shared else "keep"
    widths = list(chain.from_iterable(layer.widths for layer in plan.layers))
    widths_before = list(chain.from_iterable(plan.widths_before))
    pairs = zip(widths, widths_before, strict=True)
    return PlanFacts(
        score=plan.score,
        scope=plan.scope,
        unit=plan.unit,
        shared_expert=shared_expert if pruned.has_shared_expert else None,
        kept=plan.kept,
        rows_before=plan.rows_before,
        rows_after=plan.rows_after,
        width_min=min(widths),
        width_median=statistics.median(widths),
        width_max=max(widths),
        empty_experts=widths.count(0),
        whole_experts=sum(after == old for after, old in pairs),
        layers=tuple(
            _layer(layer, before, pruned, tokens_E)
            for layer, tokens_E in zip(plan.layers, importance.tokens_per_expert, strict=True)
            if layer.widths
        ),
    )


def _layer(
    layer: PlanLayer, before: ModelSpec, pruned: ModelSpec, tokens_E: NDArray[np.int64]
) -> LayerWidths:
    return LayerWidths(
        layer=layer.layer,
        rows_before=layer.rows_before,
        rows_after=layer.rows_after,
        importance_kept=layer.importance_kept,
        width_min=min(layer.widths),
        width_median=statistics.median(layer.widths),
        width_max=max(layer.widths),
        widths=layer.widths,
        widths_before=tuple(before.widths[layer.layer]),
        shared_width=pruned.shared_widths[layer.layer],
        shared_width_before=before.shared_widths[layer.layer],
        tokens_per_expert=tuple(tokens_E.tolist()),
        unknown_experts=layer.unknown_experts,
    )


def importance_facts(plan: Plan, importance: Importance) -> ImportanceFacts:
    """Measures how concentrated importance is where it is known, and how much of it was kept.

    Both fractions are None if no importance is known or all of it is 0.
    """
    scores = importance.scores[plan.score]
    known = np.concatenate([layer_R[np.isfinite(layer_R)] for layer_R in scores])
    total = float(known.sum())
    if total <= 0:
        return ImportanceFacts(
            known_rows=known.size,
            rows_kept=None,
            importance_kept=None,
            curve=(),
            source_shares=(),
        )
    kept_count, kept_sum = _kept(plan, scores)
    return ImportanceFacts(
        known_rows=known.size,
        rows_kept=kept_count / known.size,
        importance_kept=kept_sum / total,
        curve=_curve(known, total),
        source_shares=tuple(map(float, importance.source_shares.get(plan.score, ()))),
    )


def _kept(plan: Plan, scores: list[NDArray[np.float64]]) -> tuple[int, float]:
    """Counts the kept rows with known importance, and sums their importance."""
    count, total = 0, 0.0
    pairs = zip(plan.axis_widths_before, plan.axis_widths_after, strict=True)
    for layer_R, (before, after) in zip(scores, pairs, strict=True):
        table = ExpertTable(tuple(before))
        for expert, rows in enumerate(kept_rows(layer_R, table, after)):
            values = layer_R[table.slice_of(expert)][rows]
            values = values[np.isfinite(values)]
            count += values.size
            total += float(values.sum())
    return count, total


def _curve(known: NDArray[np.float64], total: float) -> tuple[CurvePoint, ...]:
    """Samples the cumulative importance, the most important rows first."""
    cumulative = np.concatenate([[0.0], np.cumsum(known[descending(known)])])
    places = [round(fraction * known.size) for fraction in CURVE_FRACTIONS]
    return tuple(
        CurvePoint(rows=fraction, importance=min(float(cumulative[place]) / total, 1.0))
        for fraction, place in zip(CURVE_FRACTIONS, places, strict=True)
    )


def coverage_facts(importance: Importance) -> CoverageFacts:
    """Counts the calibration tokens that reached the experts."""
    tokens = [int(count) for layer in importance.tokens_per_expert for count in layer]
    return CoverageFacts(
        experts=len(tokens),
        unknown_experts=tokens.count(0),
        tokens_per_expert_min=min(tokens),
        tokens_per_expert_median=statistics.median(tokens),
        tokens_per_expert_max=max(tokens),
    )
