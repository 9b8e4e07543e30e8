"""The codecs: their error, their edges, and their bytes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from moe_export.errors import CheckpointError, ShapeError
from moe_export.formats import FORMATS, GROUP_SIZES, int4

LEVELS = {"int8": 127, "int4": 8}


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_value_errs_by_half_a_step_at_most(name: str, group_size: int) -> None:
    matrix = np.random.default_rng(3).standard_normal((200, 7)).astype(np.float32)
    quantized = FORMATS[name](matrix, group_size, "float32")
    step = np.repeat(np.abs(quantized.scale), group_size, axis=0)[:200]
    error = np.abs(quantized.dequantized() - matrix)
    # A value opposite to the extreme one may be one step beyond the last code of int4; rounding a
    # scale to float16 moves a value of L steps by up to L * 2^-11 of a step.
    allowed = (1.0 if name == "int4" else 0.5) + LEVELS[name] * 2**-11
    assert (error <= step * allowed * (1 + 1e-6)).all()
    assert np.median(error / step) < 0.3


@pytest.mark.parametrize("name", FORMATS)
def test_what_has_codes_comes_back_exactly(name: str) -> None:
    matrix = np.arange(-8, 8, dtype=np.float32).reshape(16, 1) * 0.25
    matrix = matrix if name == "int4" else matrix * 127 / 8 // 0.25 * 0.25
    quantized = FORMATS[name](matrix, 32, "float16")
    again = FORMATS[name](quantized.dequantized(), 32, "float16")
    np.testing.assert_array_equal(again.dequantized(), quantized.dequantized())


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zero_and_an_empty_matrix_stays_empty(name: str) -> None:
    assert not FORMATS[name](np.zeros((70, 3)), 32, "float32").dequantized().any()
    for shape in ((0, 5), (5, 0)):
        quantized = FORMATS[name](np.zeros(shape), 64, "float32")
        assert quantized.dequantized().shape == shape
        assert quantized.scale.shape == ((shape[0] + 63) // 64, shape[1])


@pytest.mark.parametrize("name", FORMATS)
def test_scales_are_float16_numbers_also_in_float32(name: str) -> None:
    matrix = np.random.default_rng(4).standard_normal((64, 50))
    scale = FORMATS[name](matrix, 32, "float32").scale
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, scale.astype(np.float16))


@pytest.mark.parametrize("name", FORMATS)
def test_weights_too_small_for_a_scale_become_zero(name: str) -> None:
    assert not FORMATS[name](np.full((32, 1), 1e-9), 32, "float32").dequantized().any()


@pytest.mark.parametrize("name", FORMATS)
def test_what_cannot_be_quantized_is_refused(name: str) -> None:
    quantize = FORMATS[name]
    with pytest.raises(ShapeError, match=r"groups of 48: expected two axes and groups of 32, 64"):
        quantize(np.zeros((4, 4)), 48, "float32")
    with pytest.raises(ShapeError, match=r"shape \[4\]"):
        quantize(np.zeros(4), 32, "float32")
    with pytest.raises(CheckpointError, match="infinity or NaN"):
        quantize(np.array([[np.nan]]), 32, "float32")
    with pytest.raises(CheckpointError, match=r"weights reach 1e\+09, too large"):
        quantize(np.array([[1e9]]), 32, "float32")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(96, 5), (40, 5), (20, 1)])
def test_dequantize_linear_of_onnx_gives_the_same(name: str, shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(5).standard_normal(shape)
    quantized = FORMATS[name](matrix, 32, "float32")
    codes = ir.Value(name="codes", const_value=ir.Tensor(quantized.codes, name="codes"))
    scale = ir.Value(name="scale", const_value=ir.Tensor(quantized.scale, name="scale"))
    node = ir.node("DequantizeLinear", [codes, scale], {"axis": 0, "block_size": 32})
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    graph = ir.Graph([], [y], nodes=[node], initializers=[codes, scale], opset_imports={"": 21})
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(None, {})[0], quantized.dequantized())


def test_int4_is_packed_as_onnx_packs_it() -> None:
    codes = FORMATS["int4"](np.random.default_rng(6).standard_normal((5, 3)), 32, "float32").codes
    assert int4.pack(codes).tobytes() == ir.Tensor(codes, name="codes").tobytes()
