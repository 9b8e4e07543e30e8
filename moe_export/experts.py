"""R axis: the experts of a layer side by side, and the selection of rows on it.

Legend: D hidden, E experts, R rows (the sum of the experts' widths).

The routed experts of a layer lie along one axis R. `gate` and `up` are [R, D], and `down` is [R, D]
too: its row r is the direction that intermediate dimension r adds to the output. Importance is a
vector over R, a plan is one width per expert, and pruning is one index selection applied to all
three matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import ShapeError


@dataclass(frozen=True)
class ExpertTable:
    """Position of each expert's rows on R.

    Attributes:
        widths: Number of rows of each expert, in expert order; 0 is legal.
    """

    widths: tuple[int, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Row numbers, E + 1 of them; expert e owns rows offsets[e] to offsets[e + 1]."""
        return (0, *(int(end) for end in np.cumsum(self.widths)))

    @property
    def rows(self) -> int:
        """Number of rows R of all experts together."""
        return self.offsets[-1]

    @cached_property
    def owner_R(self) -> NDArray[np.int64]:
        """Number of the expert that owns each row, int64."""
        return np.repeat(np.arange(len(self.widths), dtype=np.int64), self.widths)

    def slice_of(self, expert: int) -> slice:
        """Slice of the rows of one expert."""
        return slice(self.offsets[expert], self.offsets[expert + 1])


def descending(importance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions from the most to the least important; of equal values the lower position is first.

    Plan, prune and tests all use this order.
    """
    return np.argsort(-importance, kind="stable")


def kept_rows(
    importance_R: NDArray[np.float64], table: ExpertTable, widths: Sequence[int]
) -> list[NDArray[np.int64]]:
    """Dimensions that each expert keeps, given its width in a plan.

    Args:
        importance_R: Importance of each row, float64; +inf if unknown, which is kept first.
        table: Position of the experts before pruning.
        widths: New width of each expert, from 0 to its present one.

    Returns:
        Ascending positions within each expert of its `widths[e]` most important dimensions.

    Raises:
        ShapeError: The lengths disagree, or a width is not between 0 and the present one.
    """
    if importance_R.shape != (table.rows,):
        raise ShapeError(f"importance has shape {importance_R.shape}, expected ({table.rows},)")
    if len(widths) != len(table.widths):
        raise ShapeError(f"{len(widths)} widths given for {len(table.widths)} experts")
    kept = []
    for expert, width in enumerate(widths):
        if not 0 <= width <= table.widths[expert]:
            raise ShapeError(
                f"expert {expert}: width {width}, expected 0 to {table.widths[expert]}"
            )
        order = descending(importance_R[table.slice_of(expert)])
        kept.append(np.sort(order[:width]))
    return kept
