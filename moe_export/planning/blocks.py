"""The rule that widths are chosen by, and the blocks of rows that it keeps or drops together.

Legend: W dimensions of an expert, B its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import PlanError
from moe_export.experts import descending
from moe_export.recipe import PlanSettings


@dataclass(frozen=True, kw_only=True)
class WidthRule:
    """Limits on the widths of experts. Fields have the names and meanings of `PlanSettings`."""

    scope: str = "model"
    unit: str = "dimension"
    min_width: int = 0
    multiple_of: int = 1

    @classmethod
    def of(cls, settings: PlanSettings) -> WidthRule:
        """The rule of a recipe's plan section."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    def uniform_width(self, width: int, fraction: float) -> int:
        """Width of an expert if every expert keeps the same share of its dimensions.

        >>> WidthRule(multiple_of=8).uniform_width(64, 0.7)
        40

        Raises:
            PlanError: the share leaves less than the least width.
        """
        kept = int(width * fraction + 1e-9) // self.multiple_of * self.multiple_of
        if kept < min(self.min_width, width):
            raise PlanError(
                f"plan: scope expert keeps {kept} of {width} dimensions, min_width is "
                f"{self.min_width}; lower min_width or keep more"
            )
        return kept


@dataclass(frozen=True)
class ExpertBlocks:
    """Dimensions of an expert in descending order of importance, cut into blocks.

    Attributes:
        order_W: Positions of the dimensions, the most important first, int64.
        start_B: Place of each block's first dimension in that order, int64.
        rows_B: Dimensions of each block, int64.
        forced_B: True for a block that holds a part of the least width.
    """

    order_W: NDArray[np.int64]
    start_B: NDArray[np.int64]
    rows_B: NDArray[np.int64]
    forced_B: NDArray[np.bool_]

    def sums(self, values_W: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of values over each block, [B].

        Args:
            values_W: Values of the dimensions, in their own order.
        """
        if not len(self.start_B):
            return np.zeros(0)
        sums_B: NDArray[np.float64] = np.add.reduceat(values_W[self.order_W], self.start_B)
        return sums_B


def expert_blocks(importance_W: NDArray[np.float64], rule: WidthRule) -> ExpertBlocks:
    """Cuts an expert's dimensions into blocks; the last one may be smaller.

    >>> blocks = expert_blocks(np.array([1.0, 5.0, 2.0]), WidthRule(multiple_of=2, min_width=1))
    >>> blocks.order_W.tolist(), blocks.rows_B.tolist(), blocks.forced_B.tolist()
    ([1, 2, 0], [2, 1], [True, False])

    Args:
        importance_W: Importance of each dimension, float64.
        rule: Size of a block and the least width.
    """
    width = len(importance_W)
    step = max(width, 1) if rule.unit == "expert" else rule.multiple_of
    start_B = np.arange(0, width, step)
    return ExpertBlocks(
        descending(importance_W),
        start_B,
        np.minimum(step, width - start_B),
        start_B < rule.min_width,
    )
