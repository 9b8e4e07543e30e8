"""Vectors, biases and condensers that a method adds to a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moe_export.errors import RecipeError
from moe_export.families.base import PRUNED_PREFIX, ModelSpec
from moe_export.families.extensions import (
    BIAS_IN_WEIGHTS_KEY,
    BIAS_KEY,
    BUDGET_KEY,
    COMPRESSED_KEY,
    CONDENSERS_KEY,
    FORM_KEY,
    cannot_bias,
    cannot_compress,
)
from moe_export.families.features import CompressedExperts, Condensers
from moe_export.recipe import TuneSettings


def extended(spec: ModelSpec, settings: TuneSettings, *, chosen: bool = False) -> ModelSpec:
    """Sizes of a model with what a method adds at the start; those of the model if nothing.

    Args:
        spec: Sizes of the model before.
        settings: Settings of the section.
        chosen: True for as many condensers as there will be, the first experts in their place,
            since they are chosen during the training.
    """
    if settings.method == "compressed_experts":
        auxiliary = auxiliary_experts(spec, settings)
        width = max(width for layer in spec.widths for width in layer)
        return replace(spec, compressed=CompressedExperts(auxiliary, settings.vectors.form, width))
    if settings.method == "condenser":
        rule = settings.condensers
        experts = tuple(
            tuple(range(rule.count if chosen else 0)) if spec.has_experts(layer) else ()
            for layer in range(spec.num_layers)
        )
        return replace(spec, condensers=condensers_of(settings, experts))
    return spec


def condensers_of(settings: TuneSettings, experts: tuple[tuple[int, ...], ...]) -> Condensers:
    """Condensers of `method: condenser`.

    Args:
        settings: Settings of the section.
        experts: Numbers of the condensers, one tuple per layer.
    """
    rule = settings.condensers
    return Condensers(experts, rule.budget == "kept", rule.bias_in_weights)


def auxiliary_experts(spec: ModelSpec, settings: TuneSettings) -> int:
    """Experts per token that become vectors."""
    given = settings.vectors.auxiliary
    return spec.top_k // 2 if given == "half" else given


def config_keys(spec: ModelSpec) -> dict[str, Any]:
    """Config keys of an extended model, with a model_type that stock loaders refuse."""
    family = spec.family
    own = {
        "model_type": PRUNED_PREFIX + family.model_type,
        "architectures": ["Ragged" + family.architecture],
    }
    if spec.compressed is not None:
        return own | {
            COMPRESSED_KEY: spec.compressed.auxiliary,
            FORM_KEY: spec.compressed.form,
        }
    if spec.condensers is not None:
        return own | {
            BIAS_KEY: True,
            BIAS_IN_WEIGHTS_KEY: spec.condensers.bias_in_weights,
            BUDGET_KEY: "kept" if spec.condensers.kept_budget else "added",
            CONDENSERS_KEY: [
                list(experts)
                for layer, experts in enumerate(spec.condensers.experts)
                if spec.has_experts(layer)
            ],
        }
    return {}


def check_extension(spec: ModelSpec, settings: TuneSettings) -> None:
    """Checks that a model can have what a method adds.

    Raises:
        RecipeError: Its routers or its number of experts per token do not suit the method.
    """
    name = spec.family.model_type
    if spec.compressed is not None or spec.condensers is not None:
        raise RecipeError(
            f"tune: this {name} was tuned with compressed experts or a router bias before; give "
            "the model that it was made from"
        )
    if settings.method == "compressed_experts":
        _check_compressed(spec, settings)
    if settings.method == "condenser":
        _check_condensers(spec, settings)


def _check_compressed(spec: ModelSpec, settings: TuneSettings) -> None:
    reason = cannot_compress(spec.family)
    if reason is not None:
        raise RecipeError(f"tune.method is compressed_experts, but {reason}; take method full")
    auxiliary = auxiliary_experts(spec, settings)
    if not 1 <= auxiliary < spec.top_k:
        raise RecipeError(
            f"tune.compressed.auxiliary is {settings.vectors.auxiliary} of the {spec.top_k} "
            f"experts per token of this {spec.family.model_type}; expected 1 to {spec.top_k - 1}, "
            "so that one expert at least is computed"
        )


def _check_condensers(spec: ModelSpec, settings: TuneSettings) -> None:
    rule = settings.condensers
    reason = cannot_bias(spec.family, in_weights=rule.bias_in_weights)
    if reason is not None:
        raise RecipeError(f"tune.method is condenser, but {reason}; take method full")
    limit = spec.top_k if rule.budget == "kept" else spec.num_experts
    if rule.count >= limit:
        per = "experts per token" if rule.budget == "kept" else "experts of a layer"
        raise RecipeError(
            f"tune.condenser.count is {rule.count} with the budget {rule.budget}, and this "
            f"{spec.family.model_type} has {limit} {per}; expected {limit - 1} at most"
        )
