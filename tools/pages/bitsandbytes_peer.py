"""The experts of a torch model in bitsandbytes' own layers, with their default settings.

Linear4bit has codes of 4 bits in blocks of 64 along the flattened matrix, whose scales are
quantized to 8 bits in turn. Linear8bitLt has int8 codes with a float32 scale for each output, and
rounds activations to float16 and then to int8. Linear4bit's codes are looked up and multiplied in
torch: on a CPU (0.50) it refuses matrices whose outputs are no multiple of 32, and dequantizes some
wrongly whose inputs are no multiple of 64.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from moe_export.torch_model.block import RaggedMoEBlock, SwiGlu

LAYERS = ("Linear4bit nf4", "Linear4bit fp4", "Linear8bitLt")


def is_installed() -> bool:
    """True if bitsandbytes is installed."""
    return find_spec("bitsandbytes") is not None


@dataclass
class Replaced:
    """Count of replaced weights.

    Attributes:
        elements: Number of weights that were replaced.
        size_bytes: Bytes of their codes and scales.
    """

    elements: int = 0
    size_bytes: int = 0


def replace_experts(model: nn.Module, layer: str) -> Replaced:
    """Replaces every matrix of routed and shared experts by a layer of bitsandbytes.

    Matrices with no output, and with one input or none, stay.

    Args:
        model: Model of `load_torch_model`.
        layer: One of `LAYERS`.
    """
    replaced = Replaced()
    for block in model.modules():
        if isinstance(block, RaggedMoEBlock):
            block.routed = tuple(_expert(expert, layer, replaced) for expert in block.routed)
            if block.shared is not None:
                shared, router = block.shared
                block.shared = (_expert(shared, layer, replaced), router)
    return replaced


def _expert(expert: SwiGlu, layer: str, replaced: Replaced) -> SwiGlu:
    return SwiGlu(*(_linear(matrix, layer, replaced) for matrix in expert))


def _linear(matrix: Any, layer: str, replaced: Replaced) -> Any:
    import bitsandbytes  # noqa: PLC0415 - a peer that may be absent

    # It logs for every matrix that it casts the input.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    outputs, inputs = matrix.weight.shape
    # Of one input, Linear8bitLt gives nonsense on a CPU (0.50).
    if outputs == 0 or inputs <= 1:
        return matrix
    kind, _, codes = layer.partition(" ")
    if kind == "Linear4bit":
        made = bitsandbytes.nn.Linear4bit(
            inputs, outputs, bias=False, compute_dtype=matrix.weight.dtype, quant_type=codes
        )
    else:
        made = bitsandbytes.nn.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)
    made.load_state_dict({"weight": matrix.weight})
    made = made.to("cpu")
    replaced.elements += outputs * inputs
    if kind == "Linear8bitLt":
        replaced.size_bytes += made.weight.nbytes + made.weight.SCB.nbytes
        return made.eval()
    state = made.weight.quant_state
    replaced.size_bytes += sum(t.nbytes for t in (made.weight, state.absmax, state.state2.absmax))
    plain = nn.Linear(inputs, outputs, bias=False)
    scale = bitsandbytes.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    pairs = made.weight.data.reshape(-1)
    codes = torch.stack([pairs >> 4, pairs & 15], dim=-1).reshape(-1)[: outputs * inputs]
    scales = scale.repeat_interleave(state.blocksize)[: outputs * inputs]
    plain.weight.data = (state.code[codes.long()] * scales).reshape(outputs, inputs)
    return plain.requires_grad_(False)
