"""Decoder as a graph: embedding, layers and logits."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

import moe_export
from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError
from moe_export.families.base import ModelSpec
from moe_export.graph.builder import CHOSEN_AXES, GraphBuilder, linear_overload
from moe_export.graph.compressed import extra_inputs
from moe_export.graph.mixer import mixer, mixer_inputs
from moe_export.graph.mlp import dense_mlp
from moe_export.graph.moe import moe, overload_of
from moe_export.graph.norm import add_and_norm, norm
from moe_export.graph.padding import to_front, to_own_place
from moe_export.op.function import ragged_moe_function
from moe_export.op.linear_function import linear_function
from moe_export.op.spec import QUANTIZED_FORMATS, Dtype, Format, Layout, LinearWord
from moe_export.variants import LOGITS_FROM

IR_VERSION = 10
"""Lowest version of the ONNX IR that opset 21 allows."""

FORMAT_VERSION = "1"
"""Version in the model's metadata; rises when inputs, outputs or weights change their meaning."""


def build_decoder(
    spec: ModelSpec,
    dtype: Dtype,
    weights: Checkpoint | None,
    layout: Layout = "portable",
    linear: LinearWord = "auto",
) -> ir.Model:
    """Builds the model as an ONNX graph; weights are read from the checkpoint when it is written.

    Inputs: `input_ids` [batch, sequence] int64, `attention_mask` [batch, total] int64 with padding
    on any side, and the states of each layer (`families.states`), such as `past_key_values.{i}.key`
    and `.value` [batch, kv_heads, past, head_dim]; latent attention has one head there. Outputs:
    `logits` [batch, sequence, vocab] and the new states, such as `present.{i}.key`, all in `dtype`.
    Batch, sequence and past are open; ONNX Runtime's attention takes more than one new token after
    a past only for a batch of one.

    The optional input `logits_from` [1] int64 is the first position of `sequence` that logits are
    computed of, counted from the end if negative. It is 0 unless fed; with -1 `logits` is
    [batch, 1, vocab] and belongs to the last real token of each row.

    Args:
        spec: Sizes of the model, pruned and quantized or not.
        dtype: Dtype of activations, caches, logits, and all weights that are not quantized.
        weights: Checkpoint that values are read from; None builds the same graph without values.
        layout: Layout of the experts' weights.
        linear: Nodes of the matrices outside the experts.
    """
    builder = GraphBuilder(spec, dtype, weights.read if weights else _no_values, layout, linear)
    input_ids = builder.input("input_ids", ir.DataType.INT64, ("batch_size", "sequence_length"))
    mask = builder.input(
        "attention_mask", ir.DataType.INT64, ("batch_size", "total_sequence_length")
    )
    shared, order = mixer_inputs(builder, input_ids, mask)
    block = builder.lookup(to_front(builder, input_ids, order), name="embedding")
    residual: ir.Value | None = None
    for layer in range(spec.num_layers):
        name = f"layers.{layer}.input_norm"
        if residual is None:
            normed, residual = norm(builder, block, "input_norm", name=name, layer=layer), block
        else:
            normed, residual = add_and_norm(
                builder, block, residual, "input_norm", name=name, layer=layer
            )
        block = mixer(builder, normed, shared, layer)
        if layer == spec.num_layers - 1:
            # Behind the last mixer, positions no longer depend on each other.
            block, residual = (to_own_place(builder, x, order) for x in (block, residual))
            builder.rename_axes(CHOSEN_AXES)
        name = f"layers.{layer}.expert_norm"
        normed, residual = add_and_norm(
            builder, block, residual, "expert_norm", name=name, layer=layer
        )
        feed_forward = moe if spec.has_experts(layer) else dense_mlp
        block = feed_forward(builder, normed, layer)
    assert residual is not None  # a spec has at least one layer
    normed, _ = add_and_norm(builder, block, residual, "final_norm", name="final_norm")
    logits = _logits(builder, normed)
    builder.output(logits, "logits", ("batch_size", "sequence_length", spec.vocab_size))
    outputs = builder.graph.outputs
    outputs.insert(0, outputs.pop())  # runtimes list the logits first
    # An input that has a value: runtimes list it apart from the others and need not feed it.
    builder.graph.inputs.append(builder.graph.initializers[LOGITS_FROM])

    model = ir.Model(
        builder.graph,
        ir_version=IR_VERSION,
        producer_name="moe-export",
        producer_version=moe_export.__version__,
        functions=_functions(builder) if layout == "portable" else [],
    )
    model.metadata_props["moe_export.model_type"] = spec.family.model_type
    model.metadata_props["moe_export.format_version"] = FORMAT_VERSION
    return model


def _logits(builder: GraphBuilder, x: ir.Value) -> ir.Value:
    spec = builder.spec
    if not spec.tied_embeddings:
        return builder.linear(x, "lm_head", name="logits", biased=spec.lm_head_bias)
    embedding = builder.weight("embedding")
    if not spec.lm_head_bias:
        return _tied_logits(builder, x, embedding, "logits")
    product = _tied_logits(builder, x, embedding, "logits_product")
    return builder.op("Add", product, builder.weight("lm_head_bias"), name="logits")


def _tied_logits(builder: GraphBuilder, x: ir.Value, embedding: ir.Value, name: str) -> ir.Value:
    """Logits by the stored embedding [V, D] (Gemm with transB), so that the file holds it once."""
    spec = builder.spec
    rows = builder.op("Reshape", x, builder.ints(-1, spec.hidden_size), name="logits.tokens")
    flat = builder.op("Gemm", rows, embedding, name="logits.product", transB=1)
    shape = builder.op("Shape", x, name="logits.shape", start=0, end=2)
    shape = builder.op(
        "Concat", shape, builder.ints(spec.vocab_size), name="logits.new_shape", axis=0
    )
    return builder.op("Reshape", flat, shape, name=name)


def _functions(builder: GraphBuilder) -> list[ir.Function]:
    """Functions of standard operators for all kinds of our nodes in the graph."""
    functions = _experts_functions(builder.spec, builder.dtype)
    for format_name, biased in builder.linear_kinds:
        group_size = builder.spec.quantization.group_size
        quantized = format_name in QUANTIZED_FORMATS
        function = linear_function(format_name, group_size if quantized else 0, bias=biased)
        function.overload = linear_overload(format_name, biased)
        functions.append(function)
    return functions


def _experts_functions(spec: ModelSpec, dtype: Dtype) -> list[ir.Function]:
    """Functions of standard operators, one per format that the experts of any layer have."""
    quantization, shared = spec.quantization, spec.has_shared_expert
    functions = []
    layers = [layer for layer in range(spec.num_layers) if spec.has_experts(layer)]
    stored = (
        quantization.format_of("gate", layer) or quantization.float_of("gate", layer)
        for layer in layers
    )
    for name in dict.fromkeys(stored):
        format_name: Format = name or dtype
        group_size = quantization.group_size if format_name in QUANTIZED_FORMATS else 0
        function = ragged_moe_function(
            spec.num_experts,
            format_name,
            group_size,
            shared_expert=shared,
            extra_inputs=extra_inputs(spec),
        )
        function.overload = overload_of(quantization, name)
        functions.append(function)
    return functions


def _no_values(name: str) -> NDArray[Any]:
    raise CheckpointError(f"{name}: the graph was built without a checkpoint and has no values")
