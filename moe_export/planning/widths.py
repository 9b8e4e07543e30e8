"""Widths that keep the most important dimensions within a budget of rows.

Legend: E experts, R rows of a layer.

Each expert's dimensions are put in descending order and cut into blocks of `multiple_of`; an
expert keeps a prefix of its blocks. Blocks are taken by their mean importance until the budget of
rows is spent. Within an expert the means descend, so taking blocks in order of their mean is the
best use of the budget, and with `multiple_of` 1 it is the plain ranking of dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import PlanError
from moe_export.experts import ExpertTable
from moe_export.planning.blocks import WidthRule, expert_blocks


@dataclass(frozen=True)
class _Block:
    """The next rows that an expert would keep, with their mean importance."""

    layer: int
    expert: int
    rows: int
    value: float
    forced: bool


def solve_widths(
    importance: Sequence[NDArray[np.float64]],
    tables: Sequence[ExpertTable],
    budget_rows: int,
    rule: WidthRule,
) -> list[list[int]]:
    """Widths per layer and expert that keep the most important dimensions within a budget.

    Args:
        importance: Importance of each row, [R] float64 per layer; higher is kept first, and +inf
            before all else.
        tables: Present widths, one table per layer.
        budget_rows: Rows to keep in the whole model. Scopes `layer` and `expert` divide it in
            proportion, rounding down.
        rule: Limits on the widths.

    Returns:
        New width of each expert, one list per layer; at most `budget_rows` in all.

    Raises:
        PlanError: `min_width` alone needs more than the budget.
    """
    total = sum(table.rows for table in tables)
    if rule.scope == "expert":
        return [
            [rule.uniform_width(width, budget_rows / total) for width in table.widths]
            for table in tables
        ]
    blocks = [
        _blocks(layer, *pair, rule)
        for layer, pair in enumerate(zip(importance, tables, strict=True))
    ]
    if rule.scope == "layer":
        budgets = [budget_rows * table.rows // total for table in tables]
        taken = [_take(b, budget, rule) for b, budget in zip(blocks, budgets, strict=True)]
        chosen = [block for part in taken for block in part]
    else:
        chosen = _take([block for part in blocks for block in part], budget_rows, rule)
    widths = [[0] * len(table.widths) for table in tables]
    for block in chosen:
        widths[block.layer][block.expert] += block.rows
    return widths


def _blocks(
    layer: int, importance_R: NDArray[np.float64], table: ExpertTable, rule: WidthRule
) -> list[_Block]:
    blocks = []
    for expert in range(len(table.widths)):
        importance_W = importance_R[table.slice_of(expert)]
        cut = expert_blocks(importance_W, rule)
        ordered_W = importance_W[cut.order_W]
        for start, rows, forced in zip(cut.start_B, cut.rows_B, cut.forced_B, strict=True):
            mean = float(ordered_W[start : start + rows].mean())
            blocks.append(_Block(layer, expert, int(rows), mean, bool(forced)))
    return blocks


def _take(blocks: list[_Block], budget_rows: int, rule: WidthRule) -> list[_Block]:
    floor_rows = sum(block.rows for block in blocks if block.forced)
    if floor_rows > budget_rows:
        raise PlanError(
            f"plan: min_width {rule.min_width} with multiple_of {rule.multiple_of} alone keeps "
            f"{floor_rows} rows, the budget is {budget_rows}; lower min_width or keep more"
        )
    taken, spent = [], 0
    # Sorting is stable, so ties go to the earlier layer, expert and block.
    for block in sorted(blocks, key=lambda b: (not b.forced, -b.value)):
        if spent + block.rows > budget_rows:
            break
        taken.append(block)
        spent += block.rows
    return taken
