"""Mixer of a layer: the block that moves information between tokens, of the layer's own kind."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from moe_export.graph.attention import AttentionInputs, attention, attention_inputs
from moe_export.graph.builder import GraphBuilder
from moe_export.graph.delta_net import delta_net
from moe_export.graph.latent_attention import LatentInputs, latent_attention, latent_inputs
from moe_export.graph.padding import FrontOrder, front_order, new_tokens, real_places
from moe_export.graph.short_convolution import short_convolution


@dataclass(frozen=True)
class MixerInputs:
    """Inputs of the mixers that are the same in every layer.

    Attributes:
        attention: Inputs of attention.
        latent: Further inputs of latent attention; None without it.
        new_tokens: Number of real new tokens of each row, [batch, 1] int64; None if no layer has a
            state of fixed size.
        is_real: True for the real tokens, [batch, sequence, 1]; None without a delta net.
    """

    attention: AttentionInputs
    latent: LatentInputs | None
    new_tokens: ir.Value | None
    is_real: ir.Value | None


def mixer_inputs(
    builder: GraphBuilder, ids: ir.Value, mask: ir.Value
) -> tuple[MixerInputs, FrontOrder]:
    """Computes the common inputs, and the places that the tokens get for the mixers.

    Args:
        builder: Graph that the nodes are added to.
        ids: Ids of the new tokens, [batch, sequence] int64.
        mask: Attention mask [batch, total] int64.
    """
    shared = attention_inputs(builder, mask)
    order = front_order(builder, ids, mask)
    latent = latent_inputs(builder, mask, order) if builder.spec.latent is not None else None
    if not builder.spec.has_fixed_states:
        return MixerInputs(shared, latent, None, None), order
    counted = new_tokens(builder, order)
    has_delta = "delta_net" in builder.spec.mixers
    is_real = real_places(builder, order, counted) if has_delta else None
    return MixerInputs(shared, latent, counted, is_real), order


def mixer(builder: GraphBuilder, x: ir.Value, shared: MixerInputs, layer: int) -> ir.Value:
    """Mixer of a layer; its states become inputs and outputs of the graph.

    Args:
        builder: Graph that the nodes are added to.
        x: Normalized hidden states, [batch, sequence, hidden].
        shared: Result of `mixer_inputs`.
        layer: Number of the layer.

    Returns:
        Output [batch, sequence, hidden], before the residual stream is added.
    """
    match builder.spec.mixers[layer]:
        case "attention":
            return attention(builder, x, shared.attention, layer)
        case "latent_attention":
            assert shared.latent is not None
            return latent_attention(builder, x, shared.attention, shared.latent, layer)
        case "short_convolution":
            assert shared.new_tokens is not None
            return short_convolution(builder, x, shared.new_tokens, layer)
        case "delta_net":
            assert shared.new_tokens is not None
            assert shared.is_real is not None
            return delta_net(builder, x, shared.new_tokens, shared.is_real, layer)
