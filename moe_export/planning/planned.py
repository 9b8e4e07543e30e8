"""Widths of a plan, and its formats where the recipe leaves them open.

Legend: R rows of a layer, E routed experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_export.checkpoint import Checkpoint
from moe_export.errors import PlanError
from moe_export.families import spec_of
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.families.quantized import in_formats
from moe_export.graph import PredictedBytes, predicted_bytes
from moe_export.op.spec import Dtype
from moe_export.planning.allocation import Allocation, Budget, Costs, allocate, format_errors
from moe_export.planning.blocks import WidthRule
from moe_export.planning.shares import token_shares
from moe_export.planning.widths import solve_widths
from moe_export.quantization import UNQUANTIZED, Quantization
from moe_export.recipe import Formats, PlanSettings

Scores = Sequence[NDArray[np.float64]]
"""Importance of each row, [R] float64 per layer."""


@dataclass(frozen=True)
class Widths:
    """Widths that meet the budget of a plan.

    Attributes:
        widths: Width of every expert on the axis, one list per layer.
        quantization: Formats of the exported weights.
        loss: Loss that the solver predicts, as a share of all importance; None if no solver ran.
    """

    widths: list[list[int]]
    quantization: Quantization
    loss: float | None = None


def plan_widths(
    checkpoint: Checkpoint,
    axis: Axis,
    ranked: Scores,
    tokens_per_expert: Sequence[NDArray[np.int64]],
    settings: PlanSettings,
    rounding: Scores | None = None,
) -> Widths:
    """Chooses the widths that spend the budget of a plan on the most important rows.

    Args:
        checkpoint: Unpruned checkpoint.
        axis: Experts that may be pruned.
        ranked: Importance, with the unreached experts ranked by `rank_unknown`.
        tokens_per_expert: Number of calibration tokens, [E] per layer.
        settings: Budget, and limits on the widths.
        rounding: Cost of rounding each row in the unit of `ranked`; needed to choose formats.

    Raises:
        PlanError: The budget cannot be met.
    """
    if settings.is_solved:
        solved = _solve(checkpoint, axis, ranked, rounding, tokens_per_expert, settings)
        return Widths(solved.widths, solved.quantization, solved.loss)
    rule = WidthRule.of(settings)
    if settings.target_bytes is not None:
        return Widths(_fit_bytes(ranked, axis, settings, rule), formats_of(settings))
    assert settings.keep is not None
    widths = solve_widths(ranked, axis.tables, round(settings.keep * axis.rows), rule)
    return Widths(widths, formats_of(settings))


def unreached(tokens_per_expert: Sequence[NDArray[np.int64]]) -> list[list[int]]:
    """Experts that no calibration token reached, one list per layer."""
    return [np.flatnonzero(tokens_E == 0).tolist() for tokens_E in tokens_per_expert]


def rank_unknown(
    scores: Scores,
    axis: Axis,
    unknown: list[list[int]],
    rule: str,
) -> list[NDArray[np.float64]]:
    """Returns the scores with unreached experts ranked first (`keep`) or last (`prune`)."""
    ranked = [layer.copy() for layer in scores]
    for layer_R, table, experts in zip(ranked, axis.tables, unknown, strict=True):
        for expert in experts:
            layer_R[table.slice_of(expert)] = np.inf if rule == "keep" else -np.inf
    return ranked


def _fit_bytes(
    ranked: Scores,
    axis: Axis,
    settings: PlanSettings,
    rule: WidthRule,
) -> list[list[int]]:
    """The widths that keep most rows of all whose exported weights fit in the byte budget."""
    assert settings.target_bytes is not None
    assert settings.dtype is not None
    target = settings.target_bytes
    axis = replace(axis, spec=in_formats(axis.spec, formats_of(settings)))
    fixed = planned_bytes(axis.emptied().spec, settings.dtype, settings).total_bytes
    least, most = 0, axis.rows
    if fixed > target:
        raise PlanError(
            f"plan.target_bytes is {target}, but {fixed} bytes lie outside the experts that are "
            f"pruned, in {settings.dtype}; raise it above that"
        )
    # The least width is left to the final plan. Alignment makes bytes not quite linear in rows, so
    # a binary search finds the most rows that fit.
    while least < most:
        rows = (least + most + 1) // 2
        widths = solve_widths(ranked, axis.tables, rows, replace(rule, min_width=0))
        size = planned_bytes(axis.resized(widths).spec, settings.dtype, settings).total_bytes
        least, most = (rows, most) if size <= target else (least, rows - 1)
    return solve_widths(ranked, axis.tables, least, rule)


def planned_bytes(spec: ModelSpec, dtype: Dtype, settings: PlanSettings) -> PredictedBytes:
    """Returns the bytes of a model, laid out as the export's settings say."""
    return predicted_bytes(spec, dtype, settings.layout or "portable", settings.linear or "auto")


def formats_of(settings: PlanSettings) -> Quantization:
    """Returns the formats of the exported weights, all float while they are still open."""
    formats = settings.formats
    if formats is None or formats.is_auto:
        return UNQUANTIZED
    return formats.quantization()


def _solve(
    checkpoint: Checkpoint,
    axis: Axis,
    ranked: Scores,
    rounding: Scores | None,
    tokens_per_expert: Sequence[NDArray[np.int64]],
    settings: PlanSettings,
) -> Allocation:
    """Widths, and formats if the recipe leaves them open, of the least predicted loss."""
    assert settings.dtype is not None
    formats = settings.formats or Formats(experts="float")
    names = formats.choices if formats.is_auto else (formats.experts,)
    errors = [
        format_errors(checkpoint, axis.spec, layer, names, formats.group_size)
        for layer in range(axis.spec.num_layers)
    ]
    shares = token_shares(tokens_per_expert, axis.spec)
    budget = Budget(
        stored_bytes=settings.target_bytes,
        read_bytes=_read_bytes(spec_of(checkpoint.config), tokens_per_expert, settings),
        dtype=settings.dtype,
        layout=settings.layout or "portable",
        linear=settings.linear or "auto",
    )
    costs = Costs(importance=ranked, rounding=rounding, shares=shares, errors=errors)
    return allocate(axis, costs, formats.quantization("float"), budget, WidthRule.of(settings))


def _read_bytes(
    spec: ModelSpec, tokens_per_expert: Sequence[NDArray[np.int64]], settings: PlanSettings
) -> int | None:
    """Limit of the bytes that a token reads; None if the recipe sets none.

    `plan.speedup` is over the model of the checkpoint, with its own experts per token.
    """
    if settings.speedup is None:
        return settings.target_active_bytes
    assert settings.dtype is not None
    unpruned = in_formats(spec, formats_of(settings))
    sizes = planned_bytes(unpruned, settings.dtype, settings)
    shares = token_shares(tokens_per_expert, spec)
    return int(sizes.active_bytes(unpruned, shares) / settings.speedup)
