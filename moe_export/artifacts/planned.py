"""Widths of a plan in the order of R: a layer's routed experts, then the shared one if the plan
prunes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec

SHARED_EXPERT = "shared_expert"
"""Key of `plan.json`, there where the shared expert is pruned; its width is then in every layer."""


def prunes_shared(plan: Mapping[str, Any]) -> bool:
    """True if the shared expert's dimensions are ranked."""
    return SHARED_EXPERT in plan


def axis_of(spec: ModelSpec, plan: Mapping[str, Any]) -> Axis:
    """The experts of a model that a plan ranks."""
    return Axis(spec, prunes_shared(plan))


def widths_before(plan: Mapping[str, Any]) -> list[list[int]]:
    """Widths of the unpruned model."""
    layers = [layer.get("shared_width_before") for layer in plan["layers"]]
    return [_ordered(*pair) for pair in zip(plan["widths_before"], layers, strict=True)]


def widths_after(plan: Mapping[str, Any]) -> list[list[int]]:
    """Widths that the plan gives."""
    return [_ordered(layer["widths"], layer.get("shared_width")) for layer in plan["layers"]]


def unpruned(pruned: ModelSpec, plan: Mapping[str, Any]) -> ModelSpec:
    """The model that a plan was made for, from the pruned model."""
    return axis_of(pruned, plan).resized(widths_before(plan)).spec


def _ordered(widths: Sequence[int], shared: int | None) -> list[int]:
    return list(widths) if shared is None else [*widths, shared]
