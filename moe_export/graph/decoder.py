"""The whole decoder: embedding, layers, logits."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

import moe_export
from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError
from moe_export.families.base import ModelSpec
from moe_export.graph.attention import attention, attention_inputs
from moe_export.graph.builder import GraphBuilder
from moe_export.graph.moe import moe, overload_of
from moe_export.graph.norm import add_and_rms_norm, rms_norm
from moe_export.graph.weights import Dtype
from moe_export.op.function import ragged_moe_function
from moe_export.op.spec import Format

IR_VERSION = 10
"""The lowest that opset 21 allows."""

FORMAT_VERSION = "1"
"""Written into the model; raised when names or meaning of inputs, outputs or weights change."""


def build_decoder(spec: ModelSpec, dtype: Dtype, weights: Checkpoint | None) -> ir.Model:
    """The model as an ONNX graph whose weights are read from the checkpoint only when written.

    Inputs: `input_ids` [batch, sequence] int64, `attention_mask` [batch, total] int64 with the
    padding on the right, and per layer `past_key_values.{i}.key` and `.value` [batch, kv_heads,
    past, head_dim]. Outputs: `logits` [batch, sequence, vocab] and per layer `present.{i}.key` and
    `.value`, all in `dtype`. Batch, sequence and past are open; ONNX Runtime's attention takes more
    than one new token after a past only for a batch of one.

    Args:
        spec: sizes of the model, pruned and quantized or not.
        dtype: of activations, caches, logits, and all weights that are not quantized.
        weights: where values are read; None gives the same graph without values.
    """
    builder = GraphBuilder(spec, dtype, weights.read if weights else _no_values)
    input_ids = builder.input("input_ids", ir.DataType.INT64, ("batch_size", "sequence_length"))
    mask = builder.input(
        "attention_mask", ir.DataType.INT64, ("batch_size", "total_sequence_length")
    )
    shared = attention_inputs(builder, mask)
    block = builder.lookup(input_ids, name="embedding")
    residual: ir.Value | None = None
    for layer in range(spec.num_layers):
        name = f"layers.{layer}.input_norm"
        if residual is None:
            normed, residual = rms_norm(builder, block, "input_norm", name=name, layer=layer), block
        else:
            normed, residual = add_and_rms_norm(
                builder, block, residual, "input_norm", name=name, layer=layer
            )
        block = attention(builder, normed, shared, layer)
        name = f"layers.{layer}.expert_norm"
        normed, residual = add_and_rms_norm(
            builder, block, residual, "expert_norm", name=name, layer=layer
        )
        block = moe(builder, normed, layer)
    assert residual is not None  # a spec has at least one layer
    normed, _ = add_and_rms_norm(builder, block, residual, "final_norm", name="final_norm")
    logits = None
    if spec.tied_embeddings:
        logits = _tied_logits(builder, normed, builder.weight("embedding"))
    if logits is None:
        logits = builder.linear(normed, "lm_head", name="logits")
    builder.output(logits, "logits", ("batch_size", "sequence_length", spec.vocab_size))
    outputs = builder.graph.outputs
    outputs.insert(0, outputs.pop())  # runtimes list the logits first

    model = ir.Model(
        builder.graph,
        ir_version=IR_VERSION,
        producer_name="moe-export",
        producer_version=moe_export.__version__,
        functions=_experts_functions(spec, dtype),
    )
    model.metadata_props["moe_export.model_type"] = spec.family.model_type
    model.metadata_props["moe_export.format_version"] = FORMAT_VERSION
    return model


def _tied_logits(builder: GraphBuilder, x: ir.Value, embedding: ir.Value) -> ir.Value:
    """Logits from the embedding [V, D] as it is stored, so that the file holds it once."""
    spec = builder.spec
    rows = builder.op("Reshape", x, builder.ints(-1, spec.hidden_size), name="logits.tokens")
    flat = builder.op("Gemm", rows, embedding, name="logits.product", transB=1)
    shape = builder.op("Shape", x, name="logits.shape", start=0, end=2)
    shape = builder.op(
        "Concat", shape, builder.ints(spec.vocab_size), name="logits.new_shape", axis=0
    )
    return builder.op("Reshape", flat, shape, name="logits")


def _experts_functions(spec: ModelSpec, dtype: Dtype) -> list[ir.Function]:
    """One for each format that the experts of some layer have."""
    quantization, shared = spec.quantization, spec.has_shared_expert
    functions = []
    layers = range(spec.num_layers)
    for format_name in dict.fromkeys(quantization.format_of("gate", layer) for layer in layers):
        stored: tuple[Format, int] = (dtype, 0)
        if format_name is not None:
            stored = format_name, quantization.group_size
        function = ragged_moe_function(spec.num_experts, *stored, shared_expert=shared)
        function.overload = overload_of(quantization, format_name)
        functions.append(function)
    return functions


def _no_values(name: str) -> NDArray[Any]:
    raise CheckpointError(f"{name}: the graph was built without a checkpoint and has no values")
