"""`Linear` and `LinearPacked` by the library: kernels, layout, sessions and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from moe_export.errors import CheckpointError
from moe_export.formats import GRIDS, QuantizedMatrix
from moe_export.op.packed_linear import LinearLayout, LinearPacker
from moe_export.testing.c_library import CLinear, OpenedLinear, RefusedError
from moe_export.testing.cases import Kind
from moe_export.testing.linear_cases import (
    LINEAR_CASES,
    LinearCase,
    LinearInputs,
    linear_error_bound,
    linear_inputs_of,
    linear_model,
    packed_linear,
    packed_linear_model,
    run_linear_reference,
)
from moe_export.testing.native_executors import KERNELS, NATIVE_KINDS, native_session

BLOCK = 32
ROUNDING_FORMATS = tuple(name for name, grid in GRIDS.items() if grid.codebook is None)
BY_NAME = {case.name: case for case in LINEAR_CASES}
BIASED = BY_NAME["three_axes_and_bias"]
INT4: Kind = ("float16", "int4", 32)


def linear_of(library: Path, inputs: LinearInputs, kernel: str | None, **other: Any) -> CLinear:
    return CLinear(
        library,
        inputs.weights,
        format_name=inputs.format_name,
        x_dtype=inputs.x.dtype.name,
        group_size=inputs.group_size,
        kernel=kernel,
        **other,
    )


def assert_equals_the_reference(y: NDArray[Any], inputs: LinearInputs, block: int) -> None:
    expected = run_linear_reference(inputs)
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    rounds = inputs.format_name in ROUNDING_FORMATS
    error = np.abs(y.astype(np.float64) - expected.astype(np.float64))
    bound = linear_error_bound(inputs, block if rounds else 0)
    assert (error <= bound).all(), f"worst {error.max()}"


@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_equals_the_reference_on_any_threads_packed_or_not(
    library: Path, kernel: str, kind: Kind
) -> None:
    for case in LINEAR_CASES:
        inputs = linear_inputs_of(case, *kind)
        y = linear_of(library, inputs, kernel).run(inputs.x)
        assert_equals_the_reference(y, inputs, BLOCK)
        tensor = packed_linear(library, inputs)
        columns, dtype = inputs.weight.shape[1], inputs.x.dtype.name
        opened = OpenedLinear(library, tensor, columns, x_dtype=dtype, kernel=kernel)
        for num_threads in (1, 3):
            np.testing.assert_array_equal(opened.run(inputs.x, num_threads=num_threads), y)


@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=str)
def test_onnx_runtime_gives_the_bits_of_the_kernel(library: Path, kind: Kind) -> None:
    for case in LINEAR_CASES:
        inputs = linear_inputs_of(case, *kind)
        expected = linear_of(library, inputs, None).run(inputs.x)
        for model in (
            linear_model(inputs),
            packed_linear_model(packed_linear(library, inputs), inputs),
        ):
            y = native_session(library, model).run(None, {"x": inputs.x})[0]
            np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_exact_activations_a_kernel_errs_by_float_rounding_only(
    library: Path, kernel: str
) -> None:
    for kind in NATIVE_KINDS:
        inputs = linear_inputs_of(BY_NAME["rows_of_several_tiles"], *kind)
        y = linear_of(library, inputs, kernel, exact_activations=True).run(inputs.x)
        assert_equals_the_reference(y, inputs, 0)


@pytest.mark.parametrize("kernel", KERNELS)
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_a_kernel_equals_the_reference_on_random_sizes(
    library: Path, kernel: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rows, depth, columns = (int(n) for n in random.integers([0, 1, 1], [30, 200, 300]))
    case = LinearCase("random", (rows,), depth, columns, bool(random.integers(0, 2)))
    kind = NATIVE_KINDS[int(random.integers(0, len(NATIVE_KINDS)))]
    inputs = linear_inputs_of(case, *kind, seed=seed)
    assert_equals_the_reference(linear_of(library, inputs, kernel).run(inputs.x), inputs, BLOCK)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_nan_or_infinity_stays_in_its_own_row(library: Path, kernel: str) -> None:
    for kind in NATIVE_KINDS:
        for value in (np.nan, np.inf):
            inputs = linear_inputs_of(BY_NAME["rows_of_several_tiles"], *kind)
            inputs.x[1, 3, 5] = value
            y = linear_of(library, inputs, kernel).run(inputs.x)
            finite = np.isfinite(y).all(axis=-1)
            assert not finite[1, 3]
            assert finite.sum() == finite.size - 1


def test_the_bytes_are_as_documented(library: Path) -> None:
    codes = (np.arange(40 * 3).reshape(40, 3) % 16 - 8).astype(GRIDS["int4"].code_dtype)
    scale = np.arange(1, 7, dtype=np.float16).reshape(2, 3)
    inputs = LinearInputs(
        np.zeros((1, 40), np.float16),
        QuantizedMatrix(codes, scale, 32),
        np.array([1, -2, 0.5], np.float16),
        "int4",
        32,
    )
    tensor = packed_linear(library, inputs)
    block = 64 * 2 + 32 * 64 // 2
    assert tensor[:8].tobytes() == b"moelin\0\0"
    assert tensor[8:24].view("<u4").tolist() == [1, 4, 32, 1]
    assert (
        tensor[24:48].view("<u8").tolist() == [40, 3, 64 + 64 + 2 * block] == [40, 3, tensor.size]
    )
    assert not tensor[48:64].any()
    assert tensor[64:128].view("<f4").tolist() == [1, -2, 0.5] + [0] * 13
    for group in range(2):
        found = tensor[128 + group * block :][:block]
        assert found[:6].view(np.float16).tolist() == scale[group].tolist()
        assert not found[6:128].any()
        # Depths 0 to 3 in the low nibbles of a column's four bytes, 4 to 7 in the high ones.
        first = codes[32 * group :][:8].astype(int) + 8
        column = found[128 + 4 * 1 :][:4].astype(int)
        assert (column & 15).tolist() == first[:4, 1].tolist()
        assert (column >> 4).tolist() == first[4:8, 1].tolist()


def test_columns_are_packed_in_ranges_of_whole_panels(library: Path) -> None:
    inputs = linear_inputs_of(BY_NAME["many_panels"], *INT4)
    assert isinstance(inputs.weight, QuantizedMatrix)
    packer = LinearPacker(LinearLayout("int4", 32, 32, 1000), library)
    ranges = (slice(0, 128), slice(128, 960), slice(960, 1000))
    parts = [packer.panels(inputs.weight.columns(columns), "w") for columns in ranges]
    np.testing.assert_array_equal(np.concatenate(parts), packer.panels(inputs.weight, "w"))


WEIGHT = np.ones((32, 3), np.float32)
CODES, SCALE = WEIGHT.astype(np.int8), np.ones((1, 3), np.float32)


@pytest.mark.parametrize(
    ("arrays", "changed", "message"),
    [
        ([WEIGHT], {"format_name": "int3"}, "attribute format is 'int3', expected float32, float"),
        ([WEIGHT], {"x_dtype": "float16"}, "x is float16, which does not go with the format"),
        ([WEIGHT[0]], {}, r"weight is float32 \[3\], expected float32 \[\?, \?\]"),
        ([WEIGHT[:, :0]], {}, "weight: the number of columns is 0, expected 1 to"),
        ([WEIGHT[:0]], {}, "weight: the depth is 0, expected 1 to"),
        ([WEIGHT] * 3, {}, "the node has 3 weights, expected 1, or 2 with a bias"),
        ([WEIGHT, SCALE[0, :2]], {}, r"bias is float32 \[2\], expected float32 \[3\]"),
        ([CODES], {"format_name": "int8"}, "group_size is 0, expected 32, 64 or 128"),
        (
            [CODES, SCALE.repeat(2, 0)],
            {"format_name": "int8", "group_size": 32},
            r"weight_scale is float32 \[2, 3\], expected float32 \[1, 3\]",
        ),
        (
            [CODES, SCALE * np.float32(1 / 3)],
            {"format_name": "int8", "group_size": 32},
            "weight_scale holds a value that is not a float16 number",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    library: Path, arrays: list[NDArray[Any]], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        CLinear(library, arrays, **{"format_name": "float32", "x_dtype": "float32"} | changed)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 31), np.float32), r"x is float32 \[2, 31\], expected float32 \[..., 32\]"),
        (np.ones((2, 32), np.float16), "x is float16"),
        (np.ones((), np.float32), r"x is float32 \[\], expected"),
    ],
)
def test_an_x_that_does_not_fit_is_refused(library: Path, x: Any, message: str) -> None:
    linear = CLinear(library, [WEIGHT], format_name="float32", x_dtype="float32")
    with pytest.raises(RefusedError, match=message):
        linear.run(x)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 0, "packed does not begin with 'moelin'"),
        (8, 2, "packed is of version 2, expected 1"),
        (12, 9, "the header of packed: attribute format is"),
        (20, 0, "its sizes make"),
        (24, 200, "its sizes make"),
        (32, 0, "its sizes make|the number of columns is 0"),
        (40, 1, "its header says"),
    ],
)
def test_packed_bytes_that_do_not_fit_are_refused(
    library: Path, place: int, value: int, message: str
) -> None:
    tensor = packed_linear(library, linear_inputs_of(BIASED, *INT4))
    tensor[place] = value
    with pytest.raises(RefusedError, match=message):
        OpenedLinear(library, tensor, 100, x_dtype="float16")
    with pytest.raises(RefusedError, match="expected a header of 64"):
        OpenedLinear(library, tensor[:63], 100, x_dtype="float16")


def test_a_session_names_the_node_that_it_refuses(library: Path) -> None:
    inputs = linear_inputs_of(BIASED, *INT4)
    model = linear_model(inputs)
    model.graph.node[0].name = "the head"
    model.graph.node[0].attribute[0].s = b"int8"
    with pytest.raises(Exception, match="Linear node 'the head': weight is int4"):
        native_session(library, model)
    model = packed_linear_model(packed_linear(library, inputs)[:-1], inputs)
    with pytest.raises(Exception, match=r"LinearPacked node '.*': packed has"):
        native_session(library, model)


def test_a_packed_model_passes_the_checker(library: Path) -> None:
    inputs = linear_inputs_of(BIASED, *INT4)
    onnx.checker.check_model(packed_linear_model(packed_linear(library, inputs), inputs), True)


def test_a_matrix_of_another_format_is_no_matrix_of_the_layout(library: Path) -> None:
    inputs = linear_inputs_of(BIASED, *INT4)
    layout = LinearLayout("int8", 32, *inputs.weight.shape)
    with pytest.raises(CheckpointError, match="the head cannot be packed: weight is int4"):
        LinearPacker(layout, library).panels(inputs.weight, "the head")
