"""Widths and formats of a model within a byte budget; see `moe_export.planning.budget`.

Legend: R rows of a layer, E routed experts, W dimensions of an expert, B blocks of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_export.checkpoint import Checkpoint
from moe_export.experts import ExpertTable
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.families.quantized import in_formats
from moe_export.formats import GRIDS
from moe_export.formats.storage import SCALE_SUFFIX, stored_parts
from moe_export.graph import predicted_bytes
from moe_export.op import rounding as native
from moe_export.op.spec import Dtype, Layout, LinearWord
from moe_export.planning.blocks import ExpertBlocks, WidthRule, expert_blocks
from moe_export.planning.budget import Blocks, Chosen, Option, balanced, fit, loss_of
from moe_export.planning.shares import Shares
from moe_export.quantization import FLOAT, FormatWord, Quantization

SAMPLED_EXPERTS = 4
"""Experts of each layer whose weights are quantized to measure the error of a format."""


@dataclass(frozen=True)
class Allocation:
    """Widths and formats that meet a budget.

    Attributes:
        widths: Width of every expert on the axis, one list per layer.
        quantization: Formats of the model, with one for the experts of each layer.
        loss: Predicted loss, as a share of all importance.
    """

    widths: list[list[int]]
    quantization: Quantization
    loss: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of the exported weights, at least one.

    Attributes:
        stored_bytes: Most bytes of the file; None for no limit.
        read_bytes: Most bytes that a token reads, mean over tokens; None for no limit.
        dtype: Dtype of weights that are not quantized.
        layout: Layout of the exported weights.
        linear: Nodes of the matrices outside the experts.
    """

    stored_bytes: int | None = None
    read_bytes: int | None = None
    dtype: Dtype
    layout: Layout = "portable"
    linear: LinearWord = "auto"

    def sizes(self, spec: ModelSpec, shares: Shares) -> tuple[int, int]:
        """Bytes of a model that are stored, and that a token reads."""
        sizes = predicted_bytes(spec, self.dtype, self.layout, self.linear)
        return sizes.total_bytes, sizes.active_bytes(spec, shares)

    def excess(self, spec: ModelSpec, shares: Shares) -> tuple[float, float]:
        """Bytes above each limit as shares of it; -inf without that limit."""
        limits = (self.stored_bytes, self.read_bytes)
        stored, read = (
            used / limit - 1 if limit is not None else -math.inf
            for used, limit in zip(self.sizes(spec, shares), limits, strict=True)
        )
        return stored, read

    def counted(self, weight: float) -> Counted:
        """Counts bytes by one limit (weight 0 stored, 1 read) or by both."""
        if self.read_bytes is None or self.stored_bytes is None:
            limit = self.stored_bytes or self.read_bytes
            assert limit is not None
            return Counted(limit, *((1, 0) if self.read_bytes is None else (0, 1)))
        # In bytes of the file; within both limits, the sum is within this one.
        return Counted(self.stored_bytes, 1 - weight, weight * self.stored_bytes / self.read_bytes)


class Counted(NamedTuple):
    """One limit, and how much of it a stored and a read byte count."""

    limit_bytes: int
    stored: float
    read: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Measured costs of dropping and of rounding, one entry per layer.

    Attributes:
        importance: Loss from dropping each row, [R] float64; +inf is kept before all else, -inf
            last.
        rounding: Loss from rounding each row with a relative squared error of 1, [R] float64; None
            if no format is to be chosen.
        shares: Share of all tokens that each routed expert gets, [E] float64.
        errors: Relative squared error of each format that the layer may have; see `format_errors`.
    """

    importance: Sequence[NDArray[np.float64]]
    rounding: Sequence[NDArray[np.float64]] | None
    shares: Shares
    errors: Sequence[dict[FormatWord, float]]

    def rounding_of(self, layer: int) -> NDArray[np.float64]:
        """Loss from rounding the rows of a layer, [R]; zeros if it is not known."""
        if self.rounding is None:
            return np.zeros_like(self.importance[layer])
        return self.rounding[layer]


def allocate(
    axis: Axis, costs: Costs, quantization: Quantization, budget: Budget, rule: WidthRule
) -> Allocation:
    """Chooses widths and a format per layer that minimise the predicted loss within a budget.

    Args:
        axis: Experts of the unpruned model that may be pruned.
        costs: Costs of dropping and of rounding.
        quantization: Formats of all other weights; its format of the experts is not used.
        budget: Byte budget.
        rule: Limits on the widths; of scope `model`.

    Raises:
        PlanError: nothing fits.
    """
    if budget.stored_bytes is None or budget.read_bytes is None:
        return _allocate(axis, costs, quantization, budget, rule, budget.counted(0))[0]

    def further_above(weight: float) -> float:
        counted = budget.counted(weight)
        model = _allocate(axis, costs, quantization, budget, rule, counted, exactly=False)[1]
        stored, read = budget.excess(model, costs.shares)
        return read - stored

    weight = balanced(further_above)
    return _allocate(axis, costs, quantization, budget, rule, budget.counted(weight))[0]


def _allocate(
    axis: Axis,
    costs: Costs,
    quantization: Quantization,
    budget: Budget,
    rule: WidthRule,
    counted: Counted,
    *,
    exactly: bool = True,
) -> tuple[Allocation, ModelSpec]:
    """Allocation under one limit of counted bytes, and the model that it makes.

    Args:
        axis: See `allocate`, as for the next four.
        costs: Costs.
        quantization: Formats.
        budget: Limits that the result keeps if `exactly`.
        rule: Limits on the widths.
        counted: Limit that ranks the dimensions.
        exactly: False to keep the limit by the bytes of rows alone, which is faster.
    """
    spec, tables = axis.spec, axis.tables
    blocks = [
        _layer_blocks(layer, table, costs, counted, rule) for layer, table in enumerate(tables)
    ]
    # Every option is measured on the model with all prunable rows removed.
    empty = axis.emptied().spec
    group_size = quantization.group_size
    every = counted.stored + counted.read

    def option(model: ModelSpec, layer: int, word: FormatWord, error: float) -> Option:
        found = _option(model, layer, word, error, group_size, budget)
        return replace(found, fixed_bytes=found.fixed_bytes * every)

    options = [
        [option(empty, layer, word, error) for word, error in errors.items()]
        for layer, errors in enumerate(costs.errors)
    ]

    def widths_of(chosen: Sequence[Chosen]) -> list[list[int]]:
        pairs = zip(chosen, tables, strict=True)
        return [list(layer.widths(len(table.widths))) for layer, table in pairs]

    def model(chosen: Sequence[Chosen]) -> ModelSpec:
        formats = _one_or_all(tuple(layer.option.name for layer in chosen))
        resized = axis.resized(widths_of(chosen)).spec
        return in_formats(resized, replace(quantization, experts=formats))

    # An option counts the experts in its format; all else is counted here, without the experts.
    unquantized = in_formats(empty, replace(quantization, experts=FLOAT))
    stored, read = budget.sizes(unquantized, costs.shares)
    elsewhere = counted.stored * stored + counted.read * read
    elsewhere -= sum(
        option(unquantized, layer, FLOAT, 0.0).fixed_bytes for layer in range(spec.num_layers)
    )
    room = counted.limit_bytes - elsewhere

    def fits(chosen: Sequence[Chosen]) -> bool:
        if not exactly:
            return sum(layer.size_bytes for layer in chosen) <= room
        return max(budget.excess(model(chosen), costs.shares)) <= 0

    chosen = fit(blocks, options, room, fits)
    total = sum(float(layer.known_B.sum()) for layer in blocks)
    loss = loss_of(chosen) / total if total > 0 else 0.0
    made = model(chosen)
    return Allocation(widths_of(chosen), made.quantization, loss), made


def format_errors(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    layer: int,
    words: Sequence[FormatWord],
    group_size: int,
) -> dict[FormatWord, float]:
    """Squared error of a layer's expert weights in each format over their squares, measured on
    some of the experts.

    Args:
        checkpoint: Checkpoint of the model.
        spec: Sizes of the model.
        layer: Number of the layer.
        words: Formats to measure.
        group_size: Weights that share a scale.
    """
    step = -(-spec.num_experts // SAMPLED_EXPERTS)
    errors: dict[FormatWord, float] = {}
    for word in words:
        lost = norm = 0.0
        for role in ("gate", "up", "down") if word in GRIDS else ():
            for expert in range(0, len(spec.widths[layer]), step):
                weight = checkpoint.read(spec.name(role, layer, expert))
                codes = native.quantize(word, weight, group_size)
                squares = native.squared_error(word, codes, weight)
                lost, norm = lost + squares[0], norm + squares[1]
        errors[word] = lost / norm if norm else 0.0
    return errors


def _one_or_all(formats: tuple[FormatWord, ...]) -> FormatWord | tuple[FormatWord, ...]:
    return formats[0] if len(set(formats)) == 1 else formats


def _layer_blocks(
    layer: int, table: ExpertTable, costs: Costs, counted: Counted, rule: WidthRule
) -> Blocks:
    """The blocks of a layer's experts, expert by expert."""
    importance_R, rounding_R = costs.importance[layer], costs.rounding_of(layer)
    rows = [table.slice_of(expert) for expert in range(len(table.widths))]
    cuts = [expert_blocks(importance_R[part], rule) for part in rows]
    share_E = counted.stored + counted.read * _share_of_each(table, costs.shares[layer])
    expert_B = np.repeat(
        np.arange(len(cuts)), np.array([len(cut.rows_B) for cut in cuts], np.int64)
    )
    return Blocks(
        expert_B,
        _joined([cut.rows_B for cut in cuts], np.int64),
        _joined([_value(cut, importance_R[part]) for cut, part in zip(cuts, rows, strict=True)]),
        # Experts that no token has reached have unknown costs, which count as 0.
        _joined(
            [
                cut.sums(np.nan_to_num(rounding_R[part], posinf=0.0))
                for cut, part in zip(cuts, rows, strict=True)
            ]
        ),
        share_E[expert_B],
    )


def _value(cut: ExpertBlocks, importance_W: NDArray[np.float64]) -> NDArray[np.float64]:
    """Loss from dropping each block, [B]; infinite for blocks of the least width."""
    return np.where(cut.forced_B, np.inf, cut.sums(np.maximum(importance_W, 0.0)))


def _joined(parts: Sequence[NDArray[np.generic]], dtype: type = np.float64) -> NDArray[Any]:
    """Arrays end to end; an empty one for a layer without experts."""
    return np.concatenate([np.zeros(0, dtype), *parts])


def _share_of_each(table: ExpertTable, share_E: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of tokens of each expert on the axis; 1 for the shared one."""
    return np.append(share_E, np.ones(len(table.widths) - len(share_E)))


def _option(
    empty: ModelSpec, layer: int, word: FormatWord, error: float, group_size: int, budget: Budget
) -> Option:
    """Cost of one format for a layer.

    Args:
        empty: Model with all prunable rows removed.
        layer: Number of the layer.
        word: The format.
        error: Relative squared error of the layer's weights in the format.
        group_size: Weights that share a scale.
        budget: Dtype of floats and scales.
    """
    itemsize = np.dtype(budget.dtype).itemsize

    def size(depth: int, columns: int) -> int:
        if word not in GRIDS:
            return depth * columns * (itemsize if word == FLOAT else np.dtype(word).itemsize)
        parts = stored_parts(word, (depth, columns), group_size)
        return sum(
            math.prod(shape) * (itemsize if suffix == SCALE_SUFFIX else dtype.itemsize)
            for suffix, (shape, dtype) in parts.items()
        )

    hidden, shared = empty.hidden_size, empty.shared_widths[layer] or 0
    # A whole group of rows is measured, so that the scales of down come out even.
    row_bytes = (2 * size(hidden, group_size) + size(group_size, hidden)) / group_size
    fixed = 2 * size(hidden, shared) + size(shared, hidden) if shared else 0
    return Option(word, row_bytes, fixed, error)
