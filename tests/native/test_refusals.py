"""Tests of the inputs that the library refuses, and of its words."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from moe_export.errors import DependencyError
from moe_export.op import library as op_library
from moe_export.op import spec
from moe_export.testing.c_library import CLayer, RefusedError
from moe_export.testing.cases import CASES, Inputs, inputs_of
from moe_export.testing.executors import feeds, one_node_model
from moe_export.testing.native_executors import FASTEST, layer_of, native_session

GOOD = inputs_of(CASES[2], "float32")
FLAT = [tensor for expert in GOOD.experts for tensor in expert]


def create(library: Path, weights: list[Any] = FLAT, **changed: Any) -> CLayer:
    arguments = {"num_experts": 6, "format_name": "float32", "x_dtype": "float32"} | changed
    return CLayer(library, weights, **arguments)


def with_weight(index: int, weight: np.ndarray[Any, Any]) -> list[Any]:
    return [*FLAT[:index], weight, *FLAT[index + 1 :]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"format_name": "int3"},
            "expected float32, float16, bfloat16, int8, int4, uint8, uint4 or nf4",
        ),
        (
            {"activation": "gelu"},
            "attribute activation is 'gelu', expected swiglu, geglu, silu, relu or relu2",
        ),
        (
            {"activation": "relu", "weights": [*FLAT[1:3] * 5, FLAT[1], FLAT[1]]},
            "down_5 is float32 [48, 8], expected float32 [8, 48]",
        ),
        ({"activation": "silu"}, "the node has 18 weights, expected 12 for 6 experts, or 14 with"),
        ({"num_experts": 0}, "attribute num_experts is 0, expected 1 to 65536"),
        ({"num_experts": -1}, "attribute num_experts is -1, expected 1 to 65536"),
        ({"num_experts": 4}, "the node has 18 weights, expected 12 for 4 experts, or 15 with a"),
        ({"weights": FLAT[:-1]}, "the node has 17 weights, expected 18 for 6 experts"),
        ({"x_dtype": "float16"}, "x is float16, which does not go with the format float32"),
        ({"x_dtype": "int64"}, "x is int64, which does not go with the format float32"),
        ({"kernel": "sse"}, "there is no kernel 'sse' for this processor, set MOE_EXPORT_KERNEL"),
        (
            {"format_name": "int4", "group_size": 48},
            "attribute group_size is 48, expected 32, 64 or 128",
        ),
        (
            {"format_name": "nf4", "group_size": 0},
            "attribute group_size is 0, expected 32, 64 or 128",
        ),
        (
            {"weights": with_weight(0, np.ones((0, 8), np.float32))},
            "gate_0: the hidden size is 0, expected 1 to 268435455",
        ),
        (
            {"weights": with_weight(0, np.ones(48, np.float32))},
            "gate_0 is float32 [48], expected float32 [D, D]",
        ),
        (
            {"weights": with_weight(4, np.ones((48, 2), np.float32))},
            "up_1 is float32 [48, 2], expected float32 [48, 0]",
        ),
        (
            {"weights": with_weight(17, np.ones((64, 47), np.float32))},
            "down_5 is float32 [64, 47], expected float32 [64, 48]",
        ),
        (
            {"weights": with_weight(2, np.ones((8, 48), np.float16))},
            "down_0 is float16 [8, 48], expected float32 [8, 48]",
        ),
        (
            {"weights": [*FLAT, *(np.ones((9, 9), np.float32),) * 3]},
            "shared_gate is float32 [9, 9], expected float32 [48, w]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    library: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        create(library, **changed)
    assert message in str(refused.value)


SHARED = next(case for case in CASES if case.name == "shared_expert")


def part(format_name: spec.Format, name: str) -> tuple[list[np.ndarray[Any, Any]], int]:
    """The weights of a node in groups of 32, and the place of the one of that name."""
    inputs = inputs_of(SHARED, "float32", format_name, 32)
    names = spec.input_names(len(inputs.experts), format_name, shared_expert=True)
    return inputs.weights, names.index(name) - 4


@pytest.mark.parametrize(
    ("format_name", "name", "change", "message"),
    [
        (
            "uint8",
            "gate_zero_point_3",
            lambda array: array.astype(np.int8),
            "gate_zero_point_3 is int8 [2, 33], expected uint8 [2, 33]",
        ),
        (
            "uint4",
            "up_zero_point_5",
            lambda array: array.astype(np.uint8),
            "up_zero_point_5 is uint8 [2, 64], expected uint4 [2, 64]",
        ),
        (
            "uint4",
            "down_zero_point_0",
            lambda array: array[:, 1:],
            "down_zero_point_0 is uint4 [1, 47], expected uint4 [1, 48]",
        ),
        (
            "uint8",
            "shared_down_zero_point",
            lambda array: array[:1],
            "shared_down_zero_point is uint8 [1, 48], expected uint8 [2, 48]",
        ),
        (
            "uint8",
            "shared_up_zero_point",
            lambda array: array[0],
            "shared_up_zero_point is uint8 [50], expected uint8 [2, 50]",
        ),
        (
            "uint8",
            "up_3",
            lambda array: array.astype(np.int8),
            "up_3 is int8 [48, 33], expected uint8 [48, 33]",
        ),
        (
            "nf4",
            "gate_1",
            lambda array: array.astype(np.int8).astype(ml_dtypes.int4),
            "gate_1 is int4 [48, 0], expected uint4 [48, w]",
        ),
        (
            "nf4",
            "down_scale_4",
            lambda array: array.astype(np.float16),
            "down_scale_4 is float16 [1, 48], expected float32 [1, 48]",
        ),
    ],
)
def test_parts_of_quantized_weights_that_do_not_fit_are_refused(
    library: Path, format_name: spec.Format, name: str, change: Any, message: str
) -> None:
    weights, place = part(format_name, name)
    weights[place] = change(weights[place])
    with pytest.raises(RefusedError) as refused:
        create(library, weights, format_name=format_name, group_size=32)
    assert message in str(refused.value)


@pytest.mark.parametrize("format_name", spec.ZERO_POINT_FORMATS)
def test_weights_without_their_zero_points_are_refused(
    library: Path, format_name: spec.Format
) -> None:
    weights, _ = part(format_name, "gate_0")
    del weights[2::3]
    with pytest.raises(RefusedError) as refused:
        create(library, weights, format_name=format_name, group_size=32)
    assert str(refused.value) == (
        "the node has 42 weights, expected 54 for 6 experts, or 63 with a shared expert"
    )


INDICES = GOOD.expert_indices


def test_a_shared_expert_needs_its_weight(library: Path) -> None:
    (case,) = (case for case in CASES if case.name == "shared_expert")
    inputs = inputs_of(case, "float32")
    layer = layer_of(library, inputs)
    with pytest.raises(RefusedError) as refused:
        layer.run(inputs.x, inputs.expert_indices, inputs.routing_weights, inputs.x)
    assert "shared_weight is float32 [7, 48], expected float32 [7, 1]" in str(refused.value)


def test_a_scale_that_is_no_float16_number_is_refused(library: Path) -> None:
    inputs = inputs_of(CASES[2], "float32", "int4", 32)
    weights = [np.array(weight) for weight in inputs.weights]
    weights[5][0, 0] = np.float32(1 / 3)
    with pytest.raises(RefusedError, match="down_scale_0 holds a value that is not a float16"):
        create(library, weights, format_name="int4", group_size=32)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(GOOD, x=GOOD.x[:, :47]), "x is float32 [7, 47], expected float32 [T, 48]"),
        (replace(GOOD, x=GOOD.x[0]), "x is float32 [48], expected float32 [T, 48]"),
        (replace(GOOD, x=GOOD.x.astype(np.float64)), "x is element type 11 [7, 48]"),
        (replace(GOOD, expert_indices=INDICES[:3]), "expert_indices is int64 [3, 2], expected"),
        (
            replace(GOOD, expert_indices=INDICES.astype(np.int8)),
            "expert_indices is int8 [7, 2], expected int64 [7, K]",
        ),
        (
            replace(GOOD, expert_indices=np.zeros((7, 0), np.int64)),
            "the number of columns of expert_indices is 0, expected 1 to 6",
        ),
        (
            replace(GOOD, expert_indices=np.zeros((7, 7), np.int64)),
            "the number of columns of expert_indices is 7, expected 1 to 6",
        ),
        (
            replace(GOOD, routing_weights=GOOD.routing_weights[:, :1]),
            "routing_weights is float32 [7, 1], expected float32 [7, 2]",
        ),
        (replace(GOOD, expert_indices=INDICES * 0 + 6), "expert_indices holds 6, expected 0 to 5"),
        (replace(GOOD, expert_indices=INDICES * 0 - 1), "expert_indices holds -1, expected 0 to 5"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(library: Path, bad: Inputs, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        layer_of(library, GOOD).run(bad.x, bad.expert_indices, bad.routing_weights)
    assert message in str(refused.value)


def test_a_node_without_a_group_size_is_refused_where_the_format_has_one(library: Path) -> None:
    model = one_node_model(inputs_of(CASES[2], "float32", "uint4", 32), with_function=False)
    (node,) = model.graph.node
    node.attribute.remove(next(each for each in node.attribute if each.name == "group_size"))
    with pytest.raises(Exception, match="attribute group_size is missing or of another type"):
        native_session(library, model)


def changed_node(**attributes: int | str) -> onnx.ModelProto:
    model = one_node_model(GOOD, with_function=False)
    (node,) = model.graph.node
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    changed = [onnx.helper.make_attribute(name, value) for name, value in attributes.items()]
    del node.attribute[:]
    node.attribute.extend(kept + changed)
    return model


def without_attribute(name: str) -> onnx.ModelProto:
    model = changed_node(**{name: 0})
    del model.graph.node[0].attribute[-1]
    return model


def with_inputs(count: int) -> onnx.ModelProto:
    model = one_node_model(GOOD, with_function=False)
    del model.graph.node[0].input[count:]
    return model


def with_computed_weight() -> onnx.ModelProto:
    model = one_node_model(GOOD, with_function=False)
    model.graph.node[0].input[3] = "x"
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            changed_node(format="int3"),
            "RaggedMoE node 'node_RaggedMoE_0': attribute format is 'int3'",
        ),
        (changed_node(format=1), "attribute format is missing or of another type"),
        (changed_node(num_experts=7), "the node has 18 weights, expected 21 for 7 experts"),
        (without_attribute("activation"), "attribute activation is missing or of another type"),
        (without_attribute("num_experts"), "attribute num_experts is missing"),
        (with_inputs(20), "the node has 17 weights, expected 18"),
        (with_inputs(19), "the node has 15 weights, expected 18"),
        (with_computed_weight(), "input 3 is not a constant, as weights have to be"),
    ],
)
def test_onnx_runtime_shows_the_sentence_when_a_session_is_created(
    library: Path, model: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(Exception, match="RaggedMoE") as refused:
        native_session(library, model)
    assert message in str(refused.value)


def test_onnx_runtime_shows_the_sentence_when_an_index_is_out_of_range(library: Path) -> None:
    session = native_session(library, one_node_model(GOOD))
    bad = feeds(replace(GOOD, expert_indices=INDICES + 6))
    with pytest.raises(Exception, match=r"RaggedMoE node '.*': expert_indices holds \d+, expected"):
        session.run(None, bad)
    # The session is as good as before.
    assert session.run(None, feeds(GOOD))[0].shape == (7, 48)


def run_with_kernel(library: Path, name: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from moe_export.op.library import describe\n"
        "print(describe(Path(sys.argv[1])))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, library],
        env=os.environ | {"MOE_EXPORT_KERNEL": name},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_chooses_the_kernel(library: Path) -> None:
    done = run_with_kernel(library, "portable")
    assert "kernel='portable', reason='asked for by name'" in done.stdout


def test_a_kernel_that_is_not_there_is_an_error(library: Path) -> None:
    done = run_with_kernel(library, "avx1024")
    assert done.returncode != 0
    assert "there is no kernel 'avx1024' for this processor" in done.stderr


def test_the_fastest_kernel_is_taken_by_itself(library: Path) -> None:
    description = op_library.describe(library)
    assert (description.kernel, description.ort_api_version) == (FASTEST, 18)


def test_a_library_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_library, "LIBRARY_NAME", "libabsent.so")
    with pytest.raises(DependencyError, match=r"libabsent\.so is not installed"):
        op_library.library_path()


def test_a_file_that_is_no_library_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "libmoe_export_ops.so"
    path.write_bytes(b"no library")
    with pytest.raises(DependencyError, match="cannot be loaded"):
        op_library.describe(path)


def test_an_onnx_runtime_that_is_too_old_is_told_so(library: Path) -> None:
    sentences = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def create_status(code: int, message: bytes) -> int:
        sentences.append(message.decode())
        return code

    old_table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def get_api(version: int) -> int | None:
        return ctypes.addressof(old_table) if version == 1 else None

    @ctypes.CFUNCTYPE(ctypes.c_void_p)
    def get_version_string() -> int | None:
        return ctypes.cast(version_string, ctypes.c_void_p).value

    version_string = ctypes.create_string_buffer(b"1.15.0")
    base = (ctypes.c_void_p * 2)(
        ctypes.cast(get_api, ctypes.c_void_p), ctypes.cast(get_version_string, ctypes.c_void_p)
    )
    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, base) == 1
    assert sentences == ["moe_export needs ONNX Runtime 1.18 or newer, this is 1.15.0"]
