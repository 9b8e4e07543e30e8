"""Layers of a model that are alike, so that what holds for one of them is computed once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from moe_export.families.base import ModelSpec


def first_alike(spec: ModelSpec) -> tuple[int, ...]:
    """Number of the first layer that each layer is like, in mixer, attention, widths and format.

    Condensers do not count: which experts they are changes no size.
    """
    firsts: dict[Hashable, int] = {}
    return tuple(firsts.setdefault(_kind(spec, layer), layer) for layer in range(spec.num_layers))


def with_layers(spec: ModelSpec, layers: Sequence[int]) -> ModelSpec:
    """The model with some of its layers alone, in the given order.

    Args:
        spec: Whole model.
        layers: Numbers of the layers, one or more.
    """
    experts, condensers = spec.quantization.experts, spec.condensers
    if not isinstance(experts, str):
        experts = tuple(experts[layer] for layer in layers)
    if condensers is not None:
        chosen = tuple(condensers.experts[layer] for layer in layers)
        condensers = replace(condensers, experts=chosen)
    return replace(
        spec,
        num_layers=len(layers),
        mixers=tuple(spec.mixers[layer] for layer in layers),
        windows=tuple(spec.windows[layer] for layer in layers),
        rotates=tuple(spec.rotates[layer] for layer in layers),
        widths=tuple(spec.widths[layer] for layer in layers),
        shared_widths=tuple(spec.shared_widths[layer] for layer in layers),
        condensers=condensers,
        quantization=replace(spec.quantization, experts=experts),
    )


def _kind(spec: ModelSpec, layer: int) -> Hashable:
    """Everything that the sizes and the nodes of a layer depend on."""
    experts = spec.quantization.experts
    return (
        spec.mixers[layer],
        spec.windows[layer],
        spec.rotates[layer],
        spec.widths[layer],
        spec.shared_widths[layer],
        experts if isinstance(experts, str) else experts[layer],
    )
