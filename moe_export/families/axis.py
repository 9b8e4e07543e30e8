"""The R axes of a whole model: which experts of each layer lie on them.

The routed experts always lie on them. The shared expert follows them where its dimensions are
scored, ranked and pruned like theirs; every token reads it. An `Axis` is made once, from a model
and the word of the recipe or the plan, so that nobody else needs to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from moe_export.errors import RecipeError
from moe_export.experts import ExpertTable
from moe_export.families.base import ModelSpec
from moe_export.families.config import check_top_k


@dataclass(frozen=True)
class Axis:
    """The experts on the R axes of a model, in the order routed, then shared.

    Attributes:
        spec: Sizes of the model.
        has_shared: True if the shared expert of each layer is on the axis, as the last.

    Raises:
        RecipeError: the shared expert is asked for and the model has none.
    """

    spec: ModelSpec
    has_shared: bool = False

    def __post_init__(self) -> None:
        if self.has_shared and not self.spec.has_shared_expert:
            raise RecipeError(
                f"plan.shared_expert is prune, but this {self.spec.family.model_type} has no "
                "shared expert; leave it out"
            )

    @cached_property
    def tables(self) -> tuple[ExpertTable, ...]:
        """Place of each expert's rows, one table per layer; empty in a layer without experts."""
        return tuple(map(self._table, range(self.spec.num_layers)))

    @property
    def rows(self) -> int:
        """Rows of all layers."""
        return sum(table.rows for table in self.tables)

    @property
    def widths(self) -> list[list[int]]:
        """Width of every expert on the axis, one list per layer."""
        return [list(table.widths) for table in self.tables]

    def resized(self, widths: Sequence[Sequence[int]]) -> Axis:
        """The axis of the same model with experts of other widths.

        Args:
            widths: New width of every expert on the axis, one list per layer.
        """
        count = self.spec.num_experts
        spec = replace(self.spec, widths=tuple(tuple(layer[:count]) for layer in widths))
        if self.has_shared:
            shared = tuple(layer[count] if layer else None for layer in widths)
            spec = replace(spec, shared_widths=shared)
        return replace(self, spec=spec)

    def routed_to(self, top_k: int | None) -> Axis:
        """The axis of the same model with other experts per token; None to keep those.

        Raises:
            RecipeError: The model's routers choose fewer.
        """
        if top_k is None:
            return self
        check_top_k(self.spec, top_k)
        return replace(self, spec=replace(self.spec, top_k=top_k))

    def emptied(self) -> Axis:
        """The axis of the model with every expert on it at width 0."""
        return self.resized([(0,) * len(table.widths) for table in self.tables])

    def routed(self, values_E: NDArray[Any]) -> NDArray[Any]:
        """The values of a layer's routed experts, given one for each expert on the axis."""
        return values_E[: self.spec.num_experts]

    def _table(self, layer: int) -> ExpertTable:
        last = self.spec.shared_widths[layer] if self.has_shared else None
        routed = self.spec.widths[layer]
        return ExpertTable(routed if last is None else (*routed, last))
