"""Memory and arithmetic of a tuning, predicted from the sizes of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe_export.errors import ResourceError
from moe_export.families.base import ModelSpec
from moe_export.passes.limits import LOGIT_BYTES
from moe_export.planning.shares import active_parameters, uniform_shares
from moe_export.recipe import TuneSettings
from moe_export.tuning.extension import extended
from moe_export.tuning.methods import Trained

VALUE_BYTES = 4
SAVES = 10
"""Number of times that the state is saved during a training."""

TRAINED_BYTES = 12
"""Gradient and two moments of a trained parameter in float32, beside its value."""

LAYER_ACTIVATIONS, EXPERT_ACTIVATIONS = 24, 8
"""Values that a layer keeps of a token for its backward pass: times the hidden size, and times the
widths of its experts. A count of the tensors, not measured."""


LAYER_STATES = 8
"""Hidden states of a token on the disk while a layer is tuned by itself: three streams before and
after it, and input and wanted output of the block."""


@dataclass(frozen=True)
class TuningNeeds:
    """Prediction for a tuning.

    Attributes:
        parameters: Number of parameters of the model.
        trained: Number of parameters that are trained.
        peak_bytes: Memory of weights, optimizer and activations.
        flops: Arithmetic of a step.
    """

    parameters: int
    trained: int
    peak_bytes: int
    flops: float


def needs_of(spec: ModelSpec, settings: TuneSettings) -> TuningNeeds:
    """Predicts the needs of tuning a model."""
    spec = extended(spec, settings, chosen=True)
    trained = trained_parameters(spec, settings)
    models = 2 if settings.objective == "distill" else 1
    tokens = settings.rows * settings.sequence_length
    held = VALUE_BYTES * models * spec.parameters + TRAINED_BYTES * trained
    held += VALUE_BYTES * tokens * (_activations(spec) + 3 * spec.vocab_size)
    held += VALUE_BYTES * settings.rows * settings.sequence_length**2 * (1 + 2 * spec.num_heads)
    active = active_parameters(spec, uniform_shares(spec)) or 0.0
    flops = (4 + 2 * models) * active * tokens
    if settings.method == "dense_mixer":  # all experts run forward for all tokens
        held += VALUE_BYTES * tokens * spec.num_layers * spec.num_experts * spec.hidden_size
        experts = sum(t.elements for t in spec.tensors.values() if t.expert is not None)
        flops += 2.0 * experts * tokens
    return TuningNeeds(spec.parameters, trained, held, flops)


def layer_needs(spec: ModelSpec, settings: TuneSettings) -> TuningNeeds:
    """Predicts the needs of tuning layer by layer; the arithmetic is that of a step in all layers.

    In memory is the largest layer, or the embeddings or the lm_head if these are larger, with the
    activations of a step, gradients, moments and old values of what is trained in the layer, and
    logits of a part of the tokens at the end.
    """
    spec = extended(spec, settings)
    trained = trained_parameters(spec, settings)
    tokens = max(settings.batch_tokens, settings.sequence_length)
    layers = max(spec.num_layers, 1)
    scores = tokens * settings.sequence_length * (1 + 2 * spec.num_heads)
    held = VALUE_BYTES * (spec.largest_part + tokens * _activations(spec) // layers + scores)
    held += (TRAINED_BYTES + VALUE_BYTES) * trained // layers + LOGIT_BYTES
    experts = sum(t.elements for t in spec.tensors.values() if t.expert is not None)
    active = experts * spec.active_experts / max(spec.num_experts, 1)
    return TuningNeeds(spec.parameters, trained, held, 6.0 * active * tokens)


def state_bytes(spec: ModelSpec, positions: int) -> int:
    """Bytes on the disk of hidden states between layers, for so many positions of documents."""
    return VALUE_BYTES * LAYER_STATES * spec.hidden_size * positions


def require_memory(spec: ModelSpec, settings: TuneSettings, memory_bytes: int | None) -> None:
    """Checks that a machine can hold a tuning.

    Args:
        spec: Sizes of the model that is tuned.
        settings: Settings of the section.
        memory_bytes: Memory of the machine; None if unknown, and nothing is checked.

    Raises:
        ResourceError: It has less than is needed.
    """
    by_layer = settings.only is not None
    needs = (layer_needs if by_layer else needs_of)(spec, settings)
    if memory_bytes is None or needs.peak_bytes <= memory_bytes:
        return
    has = f"{memory_bytes / 2**30:.1f}"
    if by_layer:
        raise ResourceError(
            f"tune: only {settings.only} of this model takes {needs.peak_bytes / 2**30:.1f} GiB, "
            f"with one layer in memory at a time, and the machine has {has}; lower "
            "tune.batch_tokens, or tune on a larger machine"
        )
    weights = VALUE_BYTES * needs.parameters / 2**30
    optimizer = TRAINED_BYTES * needs.trained / 2**30
    raise ResourceError(
        f"tune: method {settings.method} of this model takes {needs.peak_bytes / 2**30:.1f} "
        f"GiB, {weights:.1f} of them for {needs.parameters:,} weights in float32 and "
        f"{optimizer:.1f} for gradients and moments of {needs.trained:,}, and the machine has "
        f"{has}; take method esft, or objective distill with tune.only, which holds one layer at "
        "a time, lower tune.batch_tokens, or tune on a larger machine"
    )


def trained_parameters(spec: ModelSpec, settings: TuneSettings) -> int:
    """Number of parameters that a method trains.

    `esft` chooses its experts when it runs; so many are assumed as have its share if all are used
    alike.
    """
    experts = None
    if settings.method == "esft":
        count = math.ceil(settings.choice.share * spec.num_experts)
        experts = tuple(tuple(range(count)) for _ in range(spec.num_layers))
    spec, rule = extended(spec, settings), Trained(settings.method, experts, settings.only)
    return sum(spec.tensors[name].elements for name in rule.names(spec))


def _activations(spec: ModelSpec) -> int:
    """Values that all layers keep of a token."""
    shared = max((width or 0 for width in spec.shared_widths), default=0)
    widest = max((width for layer in spec.widths for width in layer), default=0)
    experts = EXPERT_ACTIVATIONS * (spec.active_experts * (widest + spec.hidden_size) + shared)
    return spec.num_layers * (LAYER_ACTIVATIONS * spec.hidden_size + experts)
