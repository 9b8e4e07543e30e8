"""Widths and formats of a model within a byte budget; see `moe_export.planning.budget`.

Legend: R rows of a layer, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_export.checkpoint import Checkpoint
from moe_export.experts import ExpertTable, descending
from moe_export.families.base import ModelSpec
from moe_export.formats import GRIDS
from moe_export.formats.storage import SCALE_SUFFIX, stored_parts
from moe_export.graph import predicted_bytes
from moe_export.graph.weights import Dtype, Layout
from moe_export.op import rounding as native
from moe_export.planning.budget import Blocks, Chosen, Option, fit, loss_of
from moe_export.quantization import ExpertFormat, Quantization

SAMPLED_EXPERTS = 4
"""Of each layer, whose weights are quantized to see what a format loses."""


@dataclass(frozen=True)
class Allocation:
    """What a budget gives.

    Attributes:
        widths: per layer and expert, the shared one last where it was asked for.
        quantization: with a format for each layer.
        loss: predicted, as a share of all importance.
    """

    widths: list[list[int]]
    quantization: Quantization
    loss: float


@dataclass(frozen=True)
class Budget:
    """What is to be kept to.

    Attributes:
        size_bytes: of the exported weights, or of those that a token reads.
        active: which of the two.
        dtype: of what is not quantized.
        layout: of the exported weights.
    """

    size_bytes: int
    active: bool
    dtype: Dtype
    layout: Layout = "portable"


def allocate(
    spec: ModelSpec,
    ranked: Sequence[NDArray[np.float64]],
    rounding: Sequence[NDArray[np.float64]] | None,
    shares: Sequence[NDArray[np.float64]],
    errors: Sequence[dict[ExpertFormat, float]],
    quantization: Quantization,
    budget: Budget,
    *,
    multiple_of: int = 1,
    min_width: int = 0,
    shared: bool = False,
) -> Allocation:
    """The widths and the format of each layer that a budget loses least by.

    Args:
        spec: the unpruned model.
        ranked: per layer the importance of its rows; +inf is kept before all else, -inf last.
        rounding: per layer what rounding them costs, in the same unit; None where no format is to
            be chosen.
        shares: per layer, of all tokens those that each expert gets.
        errors: per layer what each format that it may have loses, see `format_errors`.
        quantization: formats of all else; of the experts' it is not asked.
        budget: to keep to.
        multiple_of: rows that are kept or dropped together.
        min_width: rows that every expert keeps.
        shared: whether the shared expert is among them, its rows last; every token reads it.

    Raises:
        PlanError: nothing fits.
    """
    tables = [spec.table(layer, shared=shared) for layer in range(spec.num_layers)]
    blocks = [
        _blocks(
            layer_R,
            np.zeros_like(layer_R) if rounding is None else rounding[layer],
            tables[layer],
            _share_of_each(tables[layer], shares[layer] if budget.active else np.ones(0)),
            multiple_of,
            min_width,
        )
        for layer, layer_R in enumerate(ranked)
    ]
    empty = spec.resized([(0,) * len(table.widths) for table in tables], shared=shared)
    options = [
        [
            _option(empty, layer, name, error, quantization.group_size, budget)
            for name, error in of.items()
        ]
        for layer, of in enumerate(errors)
    ]

    names: dict[str, ExpertFormat] = {name: name for of in errors for name in of}

    def widths_of(chosen: Sequence[Chosen]) -> list[list[int]]:
        pairs = zip(chosen, tables, strict=True)
        return [list(layer.widths(len(table.widths))) for layer, table in pairs]

    def model(chosen: Sequence[Chosen]) -> ModelSpec:
        formats = _one_or_all(tuple(names[layer.option.name] for layer in chosen))
        return replace(
            spec.resized(widths_of(chosen), shared=shared),
            quantization=replace(quantization, experts=formats),
        )

    def fits(chosen: Sequence[Chosen]) -> bool:
        sizes = predicted_bytes(model(chosen), budget.dtype, budget.layout)
        found = sizes.active_bytes(model(chosen), shares) if budget.active else sizes.total_bytes
        return found <= budget.size_bytes

    # The experts' own format is counted with the rows, all else here.
    empty = replace(empty, quantization=replace(quantization, experts="float"))
    outside = predicted_bytes(empty, budget.dtype, budget.layout)
    elsewhere = outside.active_bytes(empty, shares) if budget.active else outside.total_bytes
    fixed = sum(
        _option(empty, layer, "float", 0.0, quantization.group_size, budget).fixed_bytes
        for layer in range(spec.num_layers)
    )
    chosen = fit(blocks, options, budget.size_bytes - elsewhere + fixed, fits)
    total = sum(float(layer.known_B.sum()) for layer in blocks)
    loss = loss_of(chosen) / total if total > 0 else 0.0
    return Allocation(widths_of(chosen), model(chosen).quantization, loss)


def format_errors(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    layer: int,
    names: Sequence[ExpertFormat],
    group_size: int,
) -> dict[ExpertFormat, float]:
    """The squared error of a layer's expert weights in each format, over their squares, found on
    some of the experts.
    """
    step = -(-spec.num_experts // SAMPLED_EXPERTS)
    errors: dict[ExpertFormat, float] = {}
    for name in names:
        lost = norm = 0.0
        for role in ("gate", "up", "down") if name in GRIDS else ():
            for expert in range(0, len(spec.widths[layer]), step):
                weight = checkpoint.read(spec.name(role, layer, expert))
                found = native.squared_error(
                    name, native.quantize(name, weight, group_size), weight
                )
                lost, norm = lost + found[0], norm + found[1]
        errors[name] = lost / norm if norm else 0.0
    return errors


def _share_of_each(table: ExpertTable, share_E: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the tokens, with 1 for what is read by every token or is merely stored."""
    return np.append(share_E, np.ones(len(table.widths) - len(share_E)))


def _one_or_all(
    formats: tuple[ExpertFormat, ...],
) -> ExpertFormat | tuple[ExpertFormat, ...]:
    return formats[0] if len(set(formats)) == 1 else formats


def _blocks(
    importance_R: NDArray[np.float64],
    rounding_R: NDArray[np.float64],
    table: ExpertTable,
    share_E: NDArray[np.float64],
    multiple_of: int,
    min_width: int,
) -> Blocks:
    # Empty, for a layer without experts.
    expert_B, rows_B = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    value_B, rounding_B = [np.zeros(0)], [np.zeros(0)]
    for expert, width in enumerate(table.widths):
        of_expert = importance_R[table.slice_of(expert)]
        order = descending(of_expert)
        ordered = np.maximum(of_expert[order], 0.0)
        ordered[:min_width] = np.inf
        # Nothing is known of what no token has reached.
        rounded = np.nan_to_num(rounding_R[table.slice_of(expert)][order], posinf=0.0)
        starts = np.arange(0, width, multiple_of)
        expert_B.append(np.full(len(starts), expert))
        rows_B.append(np.minimum(multiple_of, width - starts))
        value_B.append(np.add.reduceat(ordered, starts) if width else np.zeros(0))
        rounding_B.append(np.add.reduceat(rounded, starts) if width else np.zeros(0))
    experts = np.concatenate(expert_B)
    return Blocks(
        experts,
        np.concatenate(rows_B),
        np.concatenate(value_B),
        np.concatenate(rounding_B),
        share_E[experts],
    )


def _option(
    empty: ModelSpec, layer: int, name: ExpertFormat, error: float, group_size: int, budget: Budget
) -> Option:
    """A format of a layer of the model that has lost all it may lose."""
    itemsize = np.dtype(budget.dtype).itemsize

    def size(depth: int, columns: int) -> int:
        if name not in GRIDS:
            return depth * columns * (itemsize if name == "float" else np.dtype(name).itemsize)
        parts = stored_parts(name, (depth, columns), group_size)
        return sum(
            math.prod(shape) * (itemsize if suffix == SCALE_SUFFIX else dtype.itemsize)
            for suffix, (shape, dtype) in parts.items()
        )

    hidden, shared = empty.hidden_size, empty.shared_widths[layer] or 0
    # As many rows as a group has, so that the scales of down come out even.
    row_bytes = (2 * size(hidden, group_size) + size(group_size, hidden)) / group_size
    fixed = 2 * size(hidden, shared) + size(shared, hidden) if shared else 0
    return Option(name, row_bytes, fixed, error)
