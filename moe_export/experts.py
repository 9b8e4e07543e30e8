"""The R axis: a layer's experts side by side, and selection on it.

Legend: D hidden, E experts, R rows (the sum of the experts' widths).

A layer's routed experts lie along one axis R. `gate` and `up` are [R, D], and `down` is [R, D] too
(row r is the direction that intermediate dimension r adds to the output). Importance is a vector
over R, a plan is one width per expert, and pruning is one index selection applied to all three.
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
    """Where each expert's rows lie on R.

    Attributes:
        widths: rows of each expert, in expert order; 0 is legal.
    """

    widths: tuple[int, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """E + 1 row numbers; expert e owns rows offsets[e] to offsets[e + 1]."""
        return (0, *(int(end) for end in np.cumsum(self.widths)))

    @property
    def rows(self) -> int:
        """R."""
        return self.offsets[-1]

    @cached_property
    def owner_R(self) -> NDArray[np.int64]:
        """The expert of each row."""
        return np.repeat(np.arange(len(self.widths), dtype=np.int64), self.widths)

    def slice_of(self, expert: int) -> slice:
        """The rows of one expert."""
        return slice(self.offsets[expert], self.offsets[expert + 1])


def descending(importance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions from the most to the least important; ties keep the lower position first.

    This is the only order of importance in the package: plan, prune and tests all use it.
    """
    return np.argsort(-importance, kind="stable")


def kept_rows(
    importance_R: NDArray[np.float64], table: ExpertTable, widths: Sequence[int]
) -> list[NDArray[np.int64]]:
    """Dimensions that each expert keeps, given the width a plan allows it.

    Args:
        importance_R: [R] float64; an unknown dimension is +inf, so that it is kept first.
        table: where the experts lie before pruning.
        widths: the new width of each expert, 0 to its present one.

    Returns:
        Per expert, ascending positions within the expert: the `widths[e]` most important ones.

    Raises:
        ShapeError: if the lengths disagree or a width is not within 0 and the present one.
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
