"""Tests of the codecs: their errors, edge cases and bytes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from moe_export.errors import CheckpointError, ShapeError
from moe_export.formats import FORMATS, GRIDS, GROUP_SIZES, int4
from moe_export.formats.nf4 import CODEBOOK
from moe_export.op import spec

LEVELS = {"int8": 127, "int4": 8, "uint8": 255, "uint4": 15, "nf4": 1}
"""Largest magnitude divided by the scale."""

FARTHEST = {"int8": 0.5, "int4": 1.0, "uint8": 0.5, "uint4": 0.5, "nf4": 0.5 * (1 - 0.69619)}
"""Largest distance of a value from the nearest point, in units of the scale.

It is half of the widest gap. In int4, a value opposite to the extreme one may be a whole step
beyond the last code.
"""

TYPICAL = {"int8": 0.3, "int4": 0.3, "uint8": 0.3, "uint4": 0.3, "nf4": 0.03}
"""Upper limit of that distance's median: a quarter of a step, about 0.09 in the middle of nf4."""


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_value_errs_by_half_a_gap_at_most(name: str, group_size: int) -> None:
    matrix = np.random.default_rng(3).standard_normal((200, 7)).astype(np.float32)
    quantized = FORMATS[name](matrix, group_size, "float32")
    step = np.repeat(np.abs(quantized.scale), group_size, axis=0)[:200]
    error = np.abs(quantized.dequantized() - matrix)
    # Rounding a scale to float16 moves a value of L steps by up to L * 2^-11 of a step.
    allowed = FARTHEST[name] + LEVELS[name] * 2**-11
    assert (error <= step * allowed * (1 + 1e-6)).all()
    assert np.median(error / step) < TYPICAL[name]


@pytest.mark.parametrize("name", FORMATS)
def test_what_has_codes_comes_back_exactly(name: str) -> None:
    matrix = np.arange(-8, 8, dtype=np.float32).reshape(16, 1) * 0.25
    if name == "nf4":
        matrix = CODEBOOK.reshape(16, 1) * 3
    elif GRIDS[name].code_bits == 8:
        matrix = matrix * 127 / 8 // 0.25 * 0.25
    quantized = FORMATS[name](matrix, 32, "float16")
    again = FORMATS[name](quantized.dequantized(), 32, "float16")
    np.testing.assert_array_equal(again.dequantized(), quantized.dequantized())


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zero_and_an_empty_matrix_stays_empty(name: str) -> None:
    made = FORMATS[name](np.zeros((70, 3)), 32, "float32")
    assert not made.dequantized().any()
    assert not made.scale.any()
    assert made.zero_point is None or not made.zero_point.astype(np.uint8).any()
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
    for value in 1e-9, -1e-9:
        made = FORMATS[name](np.full((32, 1), value), 32, "float32")
        assert not made.dequantized().any()
        assert made.zero_point is None or int(made.zero_point[0, 0]) == 0


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
    with pytest.raises(CheckpointError, match=r"weights reach 3e\+38, too large"):
        quantize(np.array([[3e38], [-3e38]]), 32, "float32", search=True)


@pytest.mark.parametrize("name", [name for name in FORMATS if GRIDS[name].codebook is None])
@pytest.mark.parametrize("shape", [(96, 5), (40, 5), (20, 1)])
def test_dequantize_linear_of_onnx_gives_the_same(name: str, shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(5).standard_normal(shape) + 0.5
    quantized = FORMATS[name](matrix, 32, "float32")
    parts = [
        ir.Value(name=part, const_value=ir.Tensor(values, name=part))
        for part, values in zip(("codes", "scale", "zero_point"), quantized.parts, strict=False)
    ]
    node = ir.node("DequantizeLinear", parts, {"axis": 0, "block_size": 32})
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    graph = ir.Graph([], [y], nodes=[node], initializers=parts, opset_imports={"": 21})
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(None, {})[0], quantized.dequantized())


def test_int4_is_packed_as_onnx_packs_it() -> None:
    codes = FORMATS["int4"](np.random.default_rng(6).standard_normal((5, 3)), 32, "float32").codes
    assert int4.pack(codes).tobytes() == ir.Tensor(codes, name="codes").tobytes()


@pytest.mark.parametrize("name", ["uint8", "uint4"])
def test_an_asymmetric_group_uses_every_code_and_keeps_zero(name: str) -> None:
    last = 2 ** GRIDS[name].code_bits - 1
    # The range -1 to 4 has a fifth of its steps below zero. A range wholly above or below zero is
    # extended to zero.
    matrix = np.tile(np.array([[-1.0, 1.0, -4.0], [4.0, 4.0, -1.0]]), (16, 1))
    made = FORMATS[name](matrix, 32, "float32")
    assert made.zero_point is not None
    assert made.zero_point.astype(int).tolist() == [[last // 5, 0, last]]
    assert made.codes.astype(int)[:2, 0].tolist() == [0, last]
    assert made.codes.astype(int)[:2, 1].tolist() == [round(last / 4), last]
    assert made.codes.astype(int)[:2, 2].tolist() == [0, last - round(last / 4)]
    matrix[1] = 0
    assert not FORMATS[name](matrix, 32, "float32").dequantized()[1].any()


def test_nf4_takes_the_lower_code_half_way_and_the_ends_beyond() -> None:
    middle = (CODEBOOK[3] + CODEBOOK[4]) / np.float32(2)
    above = np.nextafter(middle, np.float32(1))
    matrix = np.array([[-1.0], [middle], [above], [0.0], [1.0]], np.float32)
    made = FORMATS["nf4"](matrix, 32, "float32")
    assert made.codes.astype(int)[:, 0].tolist() == [0, 3, 4, 7, 15]
    # 1.0003 is stored as 1 in float16, and the weight with it.
    assert FORMATS["nf4"](np.array([[1.0003]]), 32, "float32").dequantized().tolist() == [[1.0]]


def test_nf4_means_the_float32_product() -> None:
    matrix = np.random.default_rng(7).standard_normal((64, 5))
    made = FORMATS["nf4"](matrix, 64, "float16")
    expected = CODEBOOK[made.codes.astype(int)] * made.scale.astype(np.float32)
    np.testing.assert_array_equal(made.dequantized(), expected)


def test_the_operator_and_the_codecs_agree_on_the_formats() -> None:
    assert tuple(GRIDS) == spec.QUANTIZED_FORMATS
    assert tuple(n for n, grid in GRIDS.items() if grid.has_zero_point) == spec.ZERO_POINT_FORMATS
