"""Factors per token in the native library: every kernel, in ONNX Runtime and in packed layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moe_export.op.scales import TokenScales
from moe_export.testing.c_library import OpenedLayer, RefusedError
from moe_export.testing.cases import (
    FACTOR_CASES,
    SCALED_CASES,
    TIED,
    UP_SCALED_CASES,
    Case,
    Inputs,
    Kind,
    id_of,
    inputs_of,
)
from moe_export.testing.executors import feeds, one_node_model
from moe_export.testing.native_executors import (
    KERNELS,
    NATIVE_KINDS,
    layer_of,
    native_session,
    packed,
    packed_model,
    run_in_onnx_runtime,
    run_kernel,
)
from tests.native.test_kernels import assert_equals_the_reference

# Rows of x as they are, widened, quantized from each type, and in float32 beside codes.
SCALED_KINDS: tuple[Kind, ...] = (
    ("float32", "float32", 0),
    ("float16", "float16", 0),
    ("float32", "int4", 32),
    ("float16", "int8", 32),
    ("float16", "nf4", 64),
)
UNITS = next(case for case in SCALED_CASES if case.name == "scaled_units_beside_a_shared_expert")
UP_UNITS = UP_SCALED_CASES[-1]

# A product of two sides is written for each format.
PAIRS = [
    *((case, kind) for case in SCALED_CASES for kind in SCALED_KINDS),
    *((case, kind) for case in UP_SCALED_CASES for kind in NATIVE_KINDS),
]


@pytest.mark.parametrize(("case", "kind"), PAIRS, ids=id_of)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_equals_the_reference(library: Path, kernel: str, case: Case, kind: Kind) -> None:
    inputs = inputs_of(case, *kind)
    assert_equals_the_reference(run_kernel(library, inputs, kernel), inputs)
    exact = run_kernel(library, inputs, kernel, exact_activations=True)
    assert_equals_the_reference(exact, inputs, exact_activations=True)


@pytest.mark.parametrize("kind", SCALED_KINDS, ids=str)
@pytest.mark.parametrize("case", FACTOR_CASES, ids=lambda case: case.name)
def test_onnx_runtime_and_packed_layers_give_the_bits_of_the_kernel(
    library: Path, case: Case, kind: Kind
) -> None:
    inputs = inputs_of(case, *kind)
    y = run_kernel(library, inputs)
    np.testing.assert_array_equal(run_in_onnx_runtime(library, inputs), y)
    tensor = packed(library, inputs)
    model = ir.to_proto(packed_model(tensor, inputs))
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(native_session(library, model).run(None, feeds(inputs))[0], y)
    units = inputs.extra_inputs.get("units")
    layer = OpenedLayer(library, tensor, x_dtype=inputs.x.dtype.name, units=units)
    np.testing.assert_array_equal(_run(layer, inputs), y)


@pytest.mark.parametrize("kind", SCALED_KINDS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_factors_of_one_change_no_bit_and_threads_neither(
    library: Path, kernel: str, kind: Kind
) -> None:
    case = replace(UP_UNITS, widths=(200, 0, 33, 96), tokens=64, hidden=512)
    inputs = inputs_of(case, *kind)
    first = run_kernel(library, inputs, kernel)
    np.testing.assert_array_equal(run_kernel(library, inputs, kernel, 3), first)
    ones = {name: np.ones_like(array) for name, array in inputs.extra_inputs.items()}
    ones["units"] = inputs.extra_inputs["units"]
    plain = run_kernel(library, replace(inputs, scales=None), kernel)
    assert (plain != first).any()
    same = replace(inputs, scales=TokenScales(**ones))
    np.testing.assert_array_equal(run_kernel(library, same, kernel), plain)


@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_factors_of_x_given_to_up_again_change_no_bit(
    library: Path, kernel: str, kind: Kind
) -> None:
    # Expert 0 is chosen by one row of x, then by two, and so on: every number of rows in a product.
    for tokens in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 30):
        case = Case("rows", (40,), tokens, top_k=1, hidden=530, scales=TIED)
        tied = inputs_of(case, *kind)
        assert tied.scales is not None
        given = replace(tied.scales, up_scale=tied.scales.input_scale)
        same = run_kernel(library, replace(tied, scales=given), kernel)
        np.testing.assert_array_equal(same, run_kernel(library, tied, kernel))


INPUTS = inputs_of(UNITS, "float32", "int4", 32)
SCALES = INPUTS.extra_inputs


def _run(layer: Any, inputs: Inputs) -> Any:
    return layer.run(
        *(inputs.x, inputs.expert_indices, inputs.routing_weights, inputs.shared_weight),
        scales=inputs.extra_inputs,
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"input_scale": SCALES["input_scale"][:, :32]},
            "input_scale is float32 [13, 32], expected float32 [13, 33]",
        ),
        (
            {"input_scale": SCALES["input_scale"].astype(np.float16)},
            "input_scale is float16 [13, 33], expected float32 [13, 33]",
        ),
        (
            {"up_scale": SCALES["input_scale"][:, :32]},
            "up_scale is float32 [13, 32], expected float32 [13, 33]",
        ),
        (
            {"input_scale": None, "up_scale": SCALES["input_scale"]},
            "the input up_scale is given without input_scale or without a gate; scale x by",
        ),
        (
            {"hidden_scale": SCALES["hidden_scale"][1:]},
            "hidden_scale is float32 [12, 70], expected float32 [13, W]",
        ),
        (
            {"hidden_scale": SCALES["hidden_scale"][:, :60]},
            "the number of columns of hidden_scale is 60, expected 70 to 268435455",
        ),
        (
            {"units": SCALES["units"][1:]},
            "units is int32 [67], expected int32 [68]",
        ),
        (
            {"units": SCALES["units"].astype(np.int64)},
            "units is int64 [68], expected int32 [68]",
        ),
        ({"units": SCALES["units"] * 0 - 1}, "units holds -1, expected 0 to 268435455"),
        (
            {"units": None, "hidden_scale": SCALES["hidden_scale"][:, :64]},
            "the number of columns of hidden_scale is 64, expected 65 to 268435455",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    library: Path, changed: dict[str, Any], message: str
) -> None:
    assert INPUTS.scales is not None
    inputs = replace(INPUTS, scales=replace(INPUTS.scales, **changed))
    units = inputs.extra_inputs.get("units")
    for of_layer in (
        lambda: layer_of(library, inputs),
        lambda: OpenedLayer(library, packed(library, INPUTS), x_dtype="float32", units=units),
    ):
        with pytest.raises(RefusedError) as refused:
            _run(of_layer(), inputs)
        assert message in str(refused.value)


def _ragged(library: Path) -> onnx.ModelProto:
    return one_node_model(INPUTS, with_function=False)


def _packed(library: Path) -> onnx.ModelProto:
    return ir.to_proto(packed_model(packed(library, INPUTS), INPUTS))


@pytest.mark.parametrize("model_of", [_ragged, _packed])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "hidden_scale input_scale units",
            "attribute extra_inputs is 'hidden_scale input_scale units', expected some of",
        ),
        ("up_scale hidden_scale units", "the input up_scale is given without input_scale or"),
        ("input_scale units", "the input units is given without hidden_scale"),
        ("input_scale", "inputs, expected 6|input 4 is not a constant"),
        (None, "inputs, expected 5|input 3 is not a constant"),
    ],
)
def test_a_node_whose_attribute_does_not_name_its_inputs_is_refused(
    library: Path, model_of: Callable[[Path], onnx.ModelProto], names: str | None, message: str
) -> None:
    model = model_of(library)
    (node,) = model.graph.node
    kept = [each for each in node.attribute if each.name != "extra_inputs"]
    del node.attribute[:]
    node.attribute.extend(kept)
    if names is not None:
        node.attribute.append(onnx.helper.make_attribute("extra_inputs", names))
    with pytest.raises(Exception, match="RaggedMoE") as refused:
        native_session(library, model)
    assert any(part in str(refused.value) for part in message.split("|"))


def test_factors_for_up_need_a_gate(library: Path) -> None:
    inputs = inputs_of(replace(UP_UNITS, activation="relu2"), "float32")
    with pytest.raises(Exception, match=r"the input up_scale is given .* without a gate"):
        run_in_onnx_runtime(library, inputs)


def test_units_have_to_be_a_constant(library: Path) -> None:
    model = _ragged(library)
    place = list(model.graph.node[0].input).index("units")
    model.graph.node[0].input[place] = "hidden_scale"
    with pytest.raises(Exception, match=f"input {place} is not a constant"):
        native_session(library, model)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_factor_of_nan_stays_in_its_own_row(library: Path, kernel: str) -> None:
    inputs = inputs_of(UNITS, "float32", "int4", 32)
    inputs.expert_indices[:] = 2
    inputs.extra_inputs["input_scale"][3] = np.nan
    inputs.extra_inputs["hidden_scale"][5] = np.inf
    y = run_kernel(library, inputs, kernel)
    assert np.isnan(y[3]).all()
    assert not np.isfinite(y[5]).all()
    assert np.isfinite(np.delete(y, [3, 5], axis=0)).all()
