"""Weights that each method trains."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from moe_export.errors import RecipeError
from moe_export.families.base import ModelSpec, TensorSpec
from moe_export.families.features import VECTOR_ROLES
from moe_export.recipe import TuneSettings
from moe_export.tuning.extension import check_extension

Chosen = tuple[tuple[int, ...], ...]
"""Experts that are trained, one ascending list per layer."""

ROUTERS = ("router", "choice_bias")
NEVER = ("choice_bias", "router_bias")
"""Roles without a gradient: a bias decides the choice of experts, or has a rule of its own."""


def check_method(spec: ModelSpec, settings: TuneSettings) -> None:
    """Checks that a model has the routers that a method is for.

    Args:
        spec: Sizes of the model before.
        settings: Settings of the section.

    Raises:
        RecipeError: Its routers, or its number of experts per token, do not suit the method.
    """
    check_extension(spec, settings)
    _check_only(spec, settings)
    if settings.method == "dense_mixer" and (
        spec.family.routing.score != "softmax" or spec.groups is not None
    ):
        raise RecipeError(
            "tune.method dense_mixer gives routers gradients through a softmax over all experts, "
            f"which this {spec.family.model_type} does not have; take method full or frozen_router"
        )


def _check_only(spec: ModelSpec, settings: TuneSettings) -> None:
    """Checks that there is something to train towards the source, and a gradient of routers."""
    if settings.only != "routers":
        return
    if settings.after is None and settings.top_k is None:
        raise RecipeError(
            "tune.only is routers and nothing sets the model apart from the source that they are "
            "trained towards; give plan.top_k, or tune.after: prune"
        )
    if spec.top_k == 1 and spec.normalize_top_k:
        raise RecipeError(
            "tune.only is routers, and every token takes one expert with the weight 1, so that "
            "routers have no gradient; give a plan.top_k of 2 or more, or another method"
        )


ROLES_OF_ONLY = {
    "vectors": VECTOR_ROLES,
    "routers": ("router",),
    "vectors_and_routers": (*VECTOR_ROLES, "router"),
}
"""Roles of the tensors that each word of `only` stands for."""


@dataclass(frozen=True)
class Trained:
    """Rule that says which tensors are trained.

    Attributes:
        method: Word of the recipe.
        experts: Experts that `esft` trains; None for other methods.
        only: Word of the recipe for weights in place of the method's; None for those.
    """

    method: str
    experts: Chosen | None = None
    only: str | None = None

    def has(self, tensor: TensorSpec) -> bool:
        """True if a tensor is trained."""
        if self.only is not None:
            return tensor.role in ROLES_OF_ONLY[self.only]
        if tensor.role in NEVER:
            return False
        if self.experts is not None:
            return tensor.expert is not None and tensor.expert in self._of_layer(tensor)
        return self.method != "frozen_router" or tensor.role not in ROUTERS

    def names(self, spec: ModelSpec) -> list[str]:
        """Names of the trained tensors that have elements, in the order of the model."""
        return [name for name, t in spec.tensors.items() if self.has(t) and t.elements]

    def _of_layer(self, tensor: TensorSpec) -> Collection[int]:
        assert self.experts is not None
        return () if tensor.layer is None else self.experts[tensor.layer]
