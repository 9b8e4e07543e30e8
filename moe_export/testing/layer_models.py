"""Models of a few MoE layers to time, with random weights in an external file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.formats import known_to
from moe_export.op import spec
from moe_export.op.function import OPSET, ragged_moe_function
from moe_export.testing import layer_nodes as nodes
from moe_export.testing import layer_sizes as sizes

ALL = [
    *(f"ragged_{name}" for name in known_to("native")),
    *(f"packed_{name}" for name in known_to("packed")),
    "ragged_int4_shared",
    "packed_int4_shared",
    "packed_int4_uniform",
    "packed_int4_half",
    "packed_int4_tied",
    "packed_int4_three",
    "body_int4",
    "qmoe_int4_padded",
    "moe_float32_padded",
    "ggml_q4_0",
    "ggml_q4_0_dense_shared",
]
FACTORS: dict[str, tuple[str, ...]] = {
    "_half": (),
    "_tied": ("input_scale", "hidden_scale"),
    "_three": ("input_scale", "up_scale", "hidden_scale"),
}
"""Factors per token by the ends of names of candidates. All have half of the experts per token, and
the last two the factors of compressed experts in place of the others."""

DEFAULT = ["ragged_int4", "ragged_int8", "body_int4", "qmoe_int4_padded"]

GGML = {
    "ggml_q4_0": (sizes.MEAN_WIDTH, 0),
    "ggml_q4_0_dense_shared": (sizes.FULL_WIDTH, sizes.SHARED_WIDTH),
}
"""Layer that llama.cpp's ggml runs to the widths of its experts and of its shared expert."""


def top_k_of(name: str) -> int:
    """Experts per token of a candidate."""
    return sizes.TOP_K // 2 if name.endswith(tuple(FACTORS)) else sizes.TOP_K


def factors_of(name: str) -> tuple[str, ...]:
    """Inputs with factors per token of a candidate."""
    return next((found for end, found in FACTORS.items() if name.endswith(end)), ())


def parts(name: str, widths: NDArray[np.int64]) -> tuple[NDArray[np.int64], spec.Format, bool]:
    """Widths of a candidate, the format of its weights, and True if it has a shared expert."""
    if name in GGML:
        width, shared_width = GGML[name]
        return np.full(sizes.EXPERTS, width), "int4", shared_width > 0
    shared = name.endswith("_shared")
    if name.endswith("_uniform"):
        widths = np.full(sizes.EXPERTS, sizes.MEAN_WIDTH)
    stem = name
    for end in ("_shared", "_uniform", *FACTORS):
        stem = stem.removesuffix(end)
    return widths, stem.rsplit("_", maxsplit=1)[-1], shared


def moved_bytes(name: str, widths: NDArray[np.int64], chosen: NDArray[np.int64] | None) -> int:
    """Bytes of weights that a candidate reads.

    Args:
        name: Name of the candidate.
        widths: Widths of the experts.
        chosen: Numbers of the experts read; None for one average token.
    """
    widths, format_name, shared = parts(name, widths)
    top_k = top_k_of(name)
    count = top_k if chosen is None else len(chosen)
    if name == "qmoe_int4_padded":
        return int(count * sizes.FULL_WIDTH * 3 * sizes.HIDDEN * 5 / 8)
    if name == "moe_float32_padded":
        return count * sizes.FULL_WIDTH * 3 * sizes.HIDDEN * 4
    total = top_k * float(widths.mean()) if chosen is None else float(widths[chosen].sum())
    total += sizes.SHARED_WIDTH if shared else 0
    bits = 5 if name.startswith("body") else sizes.WEIGHT_BITS[format_name]
    return int(total * 3 * sizes.HIDDEN * bits / 8)


def feeds(
    name: str, tokens: int, random: np.random.Generator, x_dtype: str = "float32"
) -> dict[str, NDArray[Any]]:
    """Inputs of random tokens that choose distinct experts, all equally likely."""
    x = random.standard_normal((tokens, sizes.HIDDEN), np.float32)
    if name.endswith("_padded"):
        # The operator makes the same kind of choice from scores.
        scores = random.standard_normal((tokens, sizes.EXPERTS), np.float32)
        return {"x": x.astype(sizes.NUMPY[x_dtype]), "scores": scores.astype(sizes.NUMPY[x_dtype])}
    order = random.random((tokens, sizes.EXPERTS)).argsort(axis=1)
    fed: dict[str, NDArray[Any]] = {
        "x": x,
        "expert_indices": order[:, : top_k_of(name)].astype(np.int64),
        "routing_weights": random.random((tokens, top_k_of(name)), np.float32),
    }
    if name == "ragged_float16" or x_dtype == "float16":
        fed |= {key: fed[key].astype(np.float16) for key in ("x", "routing_weights")}
    if name.endswith("_shared"):
        fed["shared_weight"] = random.random((tokens, 1), np.float32)
    for factor in factors_of(name):
        columns = sizes.FULL_WIDTH if factor == "hidden_scale" else sizes.HIDDEN
        fed[factor] = 1 + random.standard_normal((tokens, columns), np.float32) / 8
    return fed


def build(
    name: str,
    widths: NDArray[np.int64],
    layers: int,
    folder: Path,
    random: np.random.Generator,
    *,
    x_dtype: str = "float32",
    group_size: int = sizes.GROUP,
) -> tuple[Path, int]:
    """Writes a model; all its layers take the model's inputs, and each gives an output.

    Returns:
        File of the model, and bytes of its weights.
    """
    folder.mkdir()
    weights = nodes.Weights(random)
    if name == "qmoe_int4_padded":
        inputs = nodes.padded_inputs(x_dtype)
        layer_nodes = [
            nodes.qmoe(weights, layer, sizes.NUMPY[x_dtype], group_size) for layer in range(layers)
        ]
    elif name.endswith("_padded"):
        inputs = nodes.padded_inputs(x_dtype)
        layer_nodes = [nodes.moe(weights, layer, sizes.NUMPY[x_dtype]) for layer in range(layers)]
    else:
        widths, format_name, shared = parts(name, widths)
        x_dtype = "float16" if format_name == "float16" else x_dtype
        factors = factors_of(name)
        kind = nodes.Kind(format_name, x_dtype, group_size, shared, top_k_of(name), factors)
        layer_of = nodes.packed if name.startswith("packed") else nodes.ragged
        inputs = nodes.ragged_inputs(kind)
        layer_nodes = [layer_of(kind, widths, weights, layer) for layer in range(layers)]
    functions = []
    if name.startswith("body"):
        functions = [
            ragged_moe_function(sizes.EXPERTS, format_name, group_size, shared_expert=shared)
        ]
    model = _model(inputs, layer_nodes, weights, functions)
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    return folder / "model.onnx", (folder / "model.onnx.data").stat().st_size


def _model(
    inputs: list[ir.Value],
    layer_nodes: list[nodes.Node],
    weights: nodes.Weights,
    functions: list[ir.Function],
) -> ir.Model:
    made = []
    for layer, node in enumerate(layer_nodes):
        node_inputs = [*inputs[: node.before], *node.weights, *inputs[node.before :]]
        made.append(ir.node(node.kind, node_inputs, node.attributes, domain=node.domain))
        y = made[-1].outputs[0]
        y.name, y.type, y.shape = f"y_{layer}", inputs[0].type, ir.Shape(["T", sizes.HIDDEN])
    graph = ir.Graph(
        inputs,
        [node.outputs[0] for node in made],
        nodes=made,
        initializers=weights.values,
        opset_imports={"": OPSET, layer_nodes[0].domain: 1},
        name="layers",
    )
    return ir.Model(graph, ir_version=10, functions=functions)
