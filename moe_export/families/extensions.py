"""Config keys of checkpoints with compressed experts, or with a router bias and condensers.

The stage `tune` writes them beside the family's own keys, under a model_type of ours, because stock
loaders would leave the added tensors out and run another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

from moe_export.errors import CheckpointError
from moe_export.families.base import PRUNED_PREFIX, Family
from moe_export.families.features import CompressedExperts, CompressedForm, Condensers
from moe_export.families.schema import shown

COMPRESSED_KEY = "compressed_experts"
"""Config key: experts per token that are vectors alone."""

FORM_KEY = "compressed_form"
"""Config key: vectors of each of them."""

BIAS_KEY = "router_bias"
"""Config key: true if each router has a stored bias."""

BIAS_IN_WEIGHTS_KEY = "router_bias_in_weights"
"""Config key: false if the bias is for the choice of experts alone."""

CONDENSERS_KEY = "condenser_experts"
"""Config key: numbers of the experts that every token gets, one list per layer with experts."""

BUDGET_KEY = "condenser_budget"
"""Config key: `added` to the chosen experts, or `kept`: in place of as many of them."""

_BUDGETS = ("added", "kept")
_OF_BIAS = (BIAS_IN_WEIGHTS_KEY, CONDENSERS_KEY, BUDGET_KEY)


def is_extended(config: dict[str, Any]) -> bool:
    """True if a model has compressed experts or a router bias."""
    return COMPRESSED_KEY in config or BIAS_KEY in config


def require_own_type(config: dict[str, Any]) -> None:
    """Checks that stock loaders refuse a checkpoint whose added tensors they would leave out.

    Raises:
        CheckpointError: Its model_type is one that they load.
    """
    if is_extended(config) and not str(config["model_type"]).startswith(PRUNED_PREFIX):
        key = COMPRESSED_KEY if COMPRESSED_KEY in config else BIAS_KEY
        raise CheckpointError(
            f"config.json: {key} needs the model_type {PRUNED_PREFIX + config['model_type']!r}, "
            f"and model_type is {config['model_type']!r}, by which stock loaders would drop its "
            "tensors; take the file that the stage tune wrote"
        )


def read_compressed(
    config: dict[str, Any], family: Family, top_k: int, width: int
) -> CompressedExperts | None:
    """Reads the compressed experts of a model; None without any.

    Args:
        config: Content of `config.json`.
        family: Family of the model.
        top_k: Experts that the router chooses for a token.
        width: Width of an expert before pruning.

    Raises:
        CheckpointError: A value is unknown, or the family's routers do not order their choices.
    """
    if COMPRESSED_KEY not in config:
        _refuse_without(config, COMPRESSED_KEY, (FORM_KEY,))
        return None
    auxiliary, form = config[COMPRESSED_KEY], config.get(FORM_KEY)
    forms: dict[Any, CompressedForm] = {word: word for word in get_args(CompressedForm)}
    if type(auxiliary) is not int or not 1 <= auxiliary < top_k:
        raise CheckpointError(
            f"config.json: {COMPRESSED_KEY} is {shown(auxiliary)}, expected 1 to {top_k - 1}: less "
            f"than the {top_k} experts per token of this {family.model_type}"
        )
    if not isinstance(form, str) or form not in forms:
        raise CheckpointError(
            f"config.json: {FORM_KEY} is {shown(form)}, expected {' or '.join(map(repr, forms))}"
        )
    reason = cannot_compress(family)
    if reason is not None:
        raise CheckpointError(f"config.json: {COMPRESSED_KEY} is {auxiliary}, but {reason}")
    if BIAS_KEY in config:
        raise CheckpointError(
            f"config.json: {COMPRESSED_KEY} and {BIAS_KEY} exclude each other; remove one of them"
        )
    return CompressedExperts(auxiliary, forms[form], width)


def read_condensers(
    config: dict[str, Any],
    family: Family,
    top_k: int,
    num_experts: int,
    has_experts: Sequence[bool],
) -> Condensers | None:
    """Reads the router bias and the condensers of a model; None without a bias.

    Args:
        config: Content of `config.json`.
        family: Family of the model.
        top_k: Experts per token.
        num_experts: Experts of a layer.
        has_experts: True for each layer that has experts.

    Raises:
        CheckpointError: A value is unknown, or the family's routers cannot have a bias.
    """
    if BIAS_KEY not in config:
        _refuse_without(config, BIAS_KEY, _OF_BIAS)
        return None
    in_weights = config.get(BIAS_IN_WEIGHTS_KEY, True)
    for key, value, known in (
        (BIAS_KEY, config[BIAS_KEY], (True,)),
        (BIAS_IN_WEIGHTS_KEY, in_weights, (True, False)),
    ):
        if not isinstance(value, bool) or value not in known:
            raise CheckpointError(
                f"config.json: {key} is {shown(value)}, expected {' or '.join(map(str, known))}"
            )
    budget = config.get(BUDGET_KEY, "added")
    if budget not in _BUDGETS:
        raise CheckpointError(
            f"config.json: {BUDGET_KEY} is {shown(budget)}, expected 'added' or 'kept'"
        )
    reason = cannot_bias(family, in_weights=in_weights)
    if reason is not None:
        raise CheckpointError(f"config.json: {BIAS_KEY} is true, but {reason}")
    experts = _read_experts(config, family, num_experts, has_experts)
    condensers = Condensers(experts, budget == "kept", in_weights)
    if condensers.kept_budget and condensers.count >= top_k:
        raise CheckpointError(
            f"config.json: {CONDENSERS_KEY} has {condensers.count} experts in a layer, and "
            f"{BUDGET_KEY} 'kept' leaves none to choose of the {top_k} per token of this "
            f"{family.model_type}; expected {top_k - 1} at most"
        )
    return condensers


def cannot_compress(family: Family) -> str | None:
    """Reason why a family cannot have compressed experts; None if it can.

    The order of a token's experts decides which of them are computed.
    """
    if family.routing.score != "sigmoid":
        return None
    return (
        f"routers of {family.model_type} order a token's experts by a bias that is not in their "
        "weights, and stock loaders do not sort them, so that none are the last ones"
    )


def cannot_bias(family: Family, *, in_weights: bool) -> str | None:
    """Reason why the routers of a family cannot have a bias; None if they can.

    Args:
        family: Family of the model.
        in_weights: True if the bias counts for the weights too.
    """
    if family.routing.score == "sigmoid":
        return (
            f"routers of {family.model_type} have a bias of their own and no softmax over all "
            "experts"
        )
    if family.routing.score == "sparsemixer" and not in_weights:
        return (
            f"weights of {family.model_type} come from the logits that chose the experts, so that "
            f"{BIAS_IN_WEIGHTS_KEY} cannot be false"
        )
    return None


def _refuse_without(config: dict[str, Any], needed: str, keys: tuple[str, ...]) -> None:
    for key in keys:
        if key in config:
            raise CheckpointError(f"config.json: {key} has no meaning without {needed}; remove it")


def _read_experts(
    config: dict[str, Any], family: Family, num_experts: int, has_experts: Sequence[bool]
) -> tuple[tuple[int, ...], ...]:
    sparse = sum(has_experts)
    rows = config.get(CONDENSERS_KEY, [[]] * sparse)
    if (
        not isinstance(rows, list)
        or len(rows) != sparse
        or not all(_is_choice(row, num_experts) for row in rows)
        or len({*map(len, rows)}) > 1
    ):
        raise CheckpointError(
            f"config.json: {CONDENSERS_KEY} is {shown(rows)}, expected equally many ascending "
            f"numbers below {num_experts} for each of the {sparse} layers with experts of this "
            f"{family.model_type}"
        )
    lists = iter(rows)
    return tuple(tuple(next(lists)) if sparse_layer else () for sparse_layer in has_experts)


def _is_choice(row: Any, num_experts: int) -> bool:
    return (
        isinstance(row, list)
        and all(type(expert) is int and 0 <= expert < num_experts for expert in row)
        and all(before < after for before, after in pairwise(row))
    )
