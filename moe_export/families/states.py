"""Tensors that the layers of a model carry from one step of decoding to the next.

Attention keeps keys and values of every token; latent attention the halves of one vector for all
heads, under the same names. Other mixers keep a state of fixed size. Graph,
runtimes, tests and predictions take names and shapes from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from moe_export.families.base import ModelSpec
from moe_export.variants import PAST_PREFIX, present_name


@dataclass(frozen=True)
class State:
    """One tensor of a layer.

    Attributes:
        past: Name of the graph's input.
        before: Sizes of the axes after the batch and before that of tokens; all, if it has none.
        after: Sizes of the axes after that of tokens; None if the size does not grow with tokens.
        is_wide: True if it is float32 whatever the model's dtype.
    """

    past: str
    before: tuple[int, ...]
    after: tuple[int, ...] | None = None
    is_wide: bool = False

    @property
    def present(self) -> str:
        """Name of the graph's output."""
        return present_name(self.past)

    def shape(self, tokens: int | str) -> tuple[int | str, ...]:
        """Sizes of the axes after the batch, for a number of tokens or the name of their axis."""
        return self.before if self.after is None else (*self.before, tokens, *self.after)

    def size_bytes(self, dtype: str) -> int:
        """Bytes of a sequence in a model of a dtype: of each token, or of all if they are fixed."""
        itemsize = np.dtype(np.float32 if self.is_wide else dtype).itemsize
        return prod(self.before) * prod(self.after or ()) * itemsize


def cached_shape(spec: ModelSpec) -> tuple[int, int]:
    """Number of heads in the cache of attention, and entries of each."""
    if spec.latent is not None:
        return 1, spec.latent.half_dim
    return spec.num_kv_heads, spec.head_dim


def layer_states(spec: ModelSpec, layer: int) -> tuple[State, ...]:
    """States of a layer, in the order of the inputs and outputs of the graph."""
    prefix = f"{PAST_PREFIX}{layer}"
    match spec.mixers[layer]:
        case "attention" | "latent_attention":
            heads, size = cached_shape(spec)
            return tuple(State(f"{prefix}.{kind}", (heads,), (size,)) for kind in ("key", "value"))
        case "short_convolution":
            taps = spec.convolution_taps
            return (State(f"{prefix}.conv_state", (spec.hidden_size, taps - 1)),)
        case "delta_net":
            delta = spec.delta_net
            assert delta is not None
            memory = (delta.value_heads, delta.value_dim, delta.key_dim)
            return (
                State(f"{prefix}.conv_state", (delta.channels, delta.taps - 1)),
                State(f"{prefix}.recurrent_state", memory, is_wide=True),
            )


def states(spec: ModelSpec) -> tuple[State, ...]:
    """States of all layers."""
    return tuple(state for layer in range(spec.num_layers) for state in layer_states(spec, layer))


def token_bytes(spec: ModelSpec, dtype: str) -> int:
    """Bytes that one more token of a sequence adds to the states of all layers."""
    return sum(state.size_bytes(dtype) for state in states(spec) if state.after is not None)


def every_head_bytes(spec: ModelSpec, dtype: str) -> int | None:
    """Bytes of a token if the cache of latent attention held keys and values of every head.

    Returns:
        The bytes in all layers; None for a model without latent attention.
    """
    latent = spec.latent
    if latent is None:
        return None
    entries = spec.num_heads * (latent.nope_dim + latent.rope_dim + latent.value_dim)
    return spec.num_layers * entries * np.dtype(dtype).itemsize


def fixed_bytes(spec: ModelSpec, dtype: str) -> int:
    """Bytes of the states of one sequence that do not grow with its tokens."""
    return sum(state.size_bytes(dtype) for state in states(spec) if state.after is None)
