"""Tests of quantized weights in the layout of ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from moe_export.families import spec_of
from moe_export.formats import FORMATS, GRIDS, GROUP_SIZES
from moe_export.formats.matrix import side_by_side
from moe_export.formats.storage import to_storage
from moe_export.graph.quantized import matmul_nbits_weight
from moe_export.quantization import QUANTIZATION_KEY, Quantization, words_for
from moe_export.testing.tiny import CONFIG

DEPTH = 72
"""Number of inputs for which the last group is incomplete, and groups of 32 are odd in number."""


def product(x_TK: NDArray[Any], weights: list[ir.LazyTensor], **attributes: int) -> NDArray[Any]:
    """Product by a MatMulNBits node that computes in float32 (accuracy level 0)."""
    kind = ir.TensorType(ir.DataType.from_numpy(x_TK.dtype))
    x = ir.Value(name="x", type=kind, shape=ir.Shape(x_TK.shape))
    stored = [ir.Tensor(weight.numpy(), name=weight.name) for weight in weights]
    values = [
        ir.Value(name=t.name, const_value=t, type=ir.TensorType(t.dtype), shape=t.shape)
        for t in stored
    ]
    node = ir.node("MatMulNBits", [x, *values], attributes, domain="com.microsoft")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", kind, ir.Shape([len(x_TK), attributes["N"]])
    imports = {"": 21, "com.microsoft": 1}
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=values, opset_imports=imports, name="one_node"
    )
    session = onnxruntime.InferenceSession(
        ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    result: NDArray[Any] = session.run(None, {"x": x_TK})[0]
    return result


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("format_name", words_for("dense")[1:])
def test_matrices_side_by_side_are_multiplied_as_they_are_dequantized(
    format_name: Any, group_size: int
) -> None:
    quantization = Quantization(dense=format_name, group_size=group_size)
    sizes = {"hidden_size": DEPTH, "head_dim": 16}
    spec = spec_of(CONFIG | sizes | {QUANTIZATION_KEY: quantization.as_config()})
    random = np.random.default_rng(11)
    names = [spec.name(role, 0) for role in ("q", "k", "v")]
    checkpoint, matrices = {}, []
    for name in names:
        # Not centred, so that zero points differ from the middle of the codes.
        values_KN = random.standard_normal(spec.tensors[name].shape[::-1]) + 0.4
        matrices.append(FORMATS[format_name](values_KN, group_size, "float16"))
        checkpoint |= {name + key: part for key, part in to_storage(matrices[-1]).items()}
    weights = matmul_nbits_weight(
        spec, "qkv", names, format_name, "float32", checkpoint.__getitem__
    )
    for weight in weights:
        assert weight.numpy().shape == tuple(weight.shape.numpy())
    whole_KN = side_by_side(matrices).dequantized().astype(np.float64)
    x_TK = random.standard_normal((5, DEPTH)).astype(np.float32)
    bits = GRIDS[format_name].storage_bits
    actual = product(x_TK, weights, K=DEPTH, N=whole_KN.shape[1], bits=bits, block_size=group_size)
    # Error bound of a sum of K products in float32, as in `moe_export.testing.tolerance`.
    bound = 4 * (DEPTH + 2) ** 0.5 * 2**-24 * (np.abs(x_TK) @ np.abs(whole_KN))
    assert (np.abs(actual - x_TK @ whole_KN) <= bound).all()
