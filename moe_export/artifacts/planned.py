"""What a plan says of widths, in the order of R: a layer's routed experts, and then the shared one
where the plan prunes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_export.errors import RecipeError
from moe_export.families.base import ModelSpec

SHARED_EXPERT = "shared_expert"
"""Key of `plan.json`, there where the shared expert is pruned; its width is then in every layer."""


def prunes_shared(plan: Mapping[str, Any]) -> bool:
    """Whether the shared expert's dimensions are among those ranked."""
    return SHARED_EXPERT in plan


def require_shared_expert(spec: ModelSpec) -> None:
    """Makes sure that there is what a plan is to prune.

    Raises:
        RecipeError: there is not.
    """
    if not spec.has_shared_expert:
        raise RecipeError(
            f"plan.shared_expert is prune, but this {spec.family.model_type} has no shared expert; "
            "leave it out"
        )


def widths_before(plan: Mapping[str, Any]) -> list[list[int]]:
    """Widths of the unpruned model."""
    layers = [layer.get("shared_width_before") for layer in plan["layers"]]
    return [_ordered(*pair) for pair in zip(plan["widths_before"], layers, strict=True)]


def widths_after(plan: Mapping[str, Any]) -> list[list[int]]:
    """Widths that the plan gives."""
    return [_ordered(layer["widths"], layer.get("shared_width")) for layer in plan["layers"]]


def unpruned(pruned: ModelSpec, plan: Mapping[str, Any]) -> ModelSpec:
    """The model that a plan was made for, from what it became."""
    return pruned.resized(widths_before(plan), shared=prunes_shared(plan))


def _ordered(widths: Sequence[int], shared: int | None) -> list[int]:
    return list(widths) if shared is None else [*widths, shared]
