"""Factors per token of the experts' inputs and hidden values: optional inputs of `RaggedMoE`.

Legend: T tokens, D hidden, W columns of the hidden scale, R rows (the sum of the routed widths).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import ShapeError
from moe_export.op.spec import SCALE_INPUTS


@dataclass(frozen=True)
class TokenScales:
    """Optional inputs of a node that scale what its routed experts compute.

    Attributes:
        input_scale: factors of x, [T, D] in x's dtype; None for ones.
        up_scale: factors of x for `up` alone, [T, D] in x's dtype; None for `input_scale`.
        hidden_scale: factors of the hidden values, [T, W] in x's dtype; None for ones.
        units: column of `hidden_scale` for each row of R, [R] int32; None if the rows of an expert
            of width w take the columns 0 to w - 1.
    """

    input_scale: NDArray[Any] | None = None
    up_scale: NDArray[Any] | None = None
    hidden_scale: NDArray[Any] | None = None
    units: NDArray[np.int32] | None = None

    @property
    def by_name(self) -> dict[str, NDArray[Any]]:
        """Arrays of the inputs that are there, by name and in the order of a node."""
        given = {name: getattr(self, name) for name in SCALE_INPUTS}
        return {name: array for name, array in given.items() if array is not None}

    def units_of(self, widths: tuple[int, ...]) -> NDArray[np.int64]:
        """Column of `hidden_scale` for each row of R, given or not."""
        if self.units is not None:
            return self.units.astype(np.int64)
        return np.concatenate([np.arange(width) for width in widths])

    def check(self, x_TD: NDArray[Any], widths: tuple[int, ...], *, gated: bool) -> None:
        """Checks shapes, dtypes and units.

        Args:
            x_TD: input of the node.
            widths: widths of the routed experts.
            gated: True if the activation has a gate.

        Raises:
            ShapeError: if an input does not fit.
        """
        self._check_presence(gated=gated)
        for name in ("input_scale", "up_scale", "hidden_scale"):
            scale = getattr(self, name)
            columns = x_TD.shape[1] if name != "hidden_scale" else None
            if scale is not None:
                _check_scale(name, scale, x_TD, columns)
        if self.units is not None and (
            self.units.shape != (sum(widths),) or self.units.dtype != np.int32
        ):
            raise ShapeError(
                f"units is {self.units.dtype} {list(self.units.shape)}, expected int32 "
                f"[{sum(widths)}]"
            )
        if self.hidden_scale is None:
            return
        units_R, columns = self.units_of(widths), self.hidden_scale.shape[1]
        if units_R.size and not (units_R.min() >= 0 and units_R.max() < columns):
            raise ShapeError(
                f"hidden_scale has {columns} columns, the hidden units are numbered "
                f"{units_R.min()} to {units_R.max()}"
            )

    def _check_presence(self, *, gated: bool) -> None:
        if self.up_scale is not None and (self.input_scale is None or not gated):
            raise ShapeError(
                "up_scale is given without input_scale or without a gate; scale x by input_scale"
            )
        if self.units is not None and self.hidden_scale is None:
            raise ShapeError("units is given without hidden_scale, whose columns it numbers")


def _check_scale(name: str, scale: NDArray[Any], x_TD: NDArray[Any], columns: int | None) -> None:
    shape = (x_TD.shape[0], scale.shape[-1] if columns is None else columns)
    if scale.shape != shape or scale.dtype != x_TD.dtype:
        expected = f"[{shape[0]}, {'W' if columns is None else columns}]"
        raise ShapeError(
            f"{name} is {scale.dtype} {list(scale.shape)}, expected {x_TD.dtype} {expected}"
        )
