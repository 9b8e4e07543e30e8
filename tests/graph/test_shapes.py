"""Tests of the shapes that a model states for the values between its nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from moe_export.op.library import register
from moe_export.op.spec import Dtype, Layout
from moe_export.recipe import QuantizeSettings
from moe_export.stages import quantize
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint

BATCH, SEQUENCE, PAST = 2, 5, 0

AXES = {
    "batch_size": BATCH,
    "sequence_length": SEQUENCE,
    "tokens": BATCH * SEQUENCE,
    "past_sequence_length": PAST,
    "total_sequence_length": PAST + SEQUENCE,
}
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def stated(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Type of every node's output, as the file states it."""
    values = {v.name: v.type.tensor_type for v in (*model.graph.value_info, *model.graph.output)}
    names = [name for node in model.graph.node for name in node.output if name]
    assert [name for name in names if name not in values] == []
    return {name: values[name] for name in names}


def run_all(folder: Path, model: onnx.ModelProto, types: dict[str, Any]) -> dict[str, Any]:
    """Values of all node outputs for a batch of prompts."""
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name, type=onnx.TypeProto(tensor_type=types[name]))
        for name in types
        if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    if not model.functions:
        register(options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds: dict[str, Any] = {
        "input_ids": np.arange(BATCH * SEQUENCE, dtype=np.int64).reshape(BATCH, SEQUENCE),
        "attention_mask": np.ones((BATCH, PAST + SEQUENCE), np.int64),
    }
    for value in session.get_inputs()[2:]:
        shape = [AXES.get(size, size) for size in value.shape]
        feeds[value.name] = np.zeros(shape, NUMPY_TYPES[value.type])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def check(folder: Path) -> None:
    """Compares type and shape of every value with what the file states."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    types = stated(model)
    free: dict[str, int] = {}
    for name, value in run_all(folder, model, types).items():
        expected = []
        for place, axis in enumerate(types[name].shape.dim):
            if axis.HasField("dim_value"):
                expected.append(axis.dim_value)
            elif axis.dim_param in AXES:
                expected.append(AXES[axis.dim_param])
            else:
                expected.append(free.setdefault(axis.dim_param, value.shape[place]))
        assert value.shape == tuple(expected), name
        assert onnx.helper.np_dtype_to_tensor_dtype(value.dtype) == types[name].elem_type, name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model_type)
def test_every_value_has_the_stated_type_and_shape(
    row: FamilyRow, dtype: Dtype, tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path / "source", base=row.config)
    pruned = pruned_checkpoint(source, tmp_path / "pruned", row.widths(24, 0, 7, 16))
    export_model(pruned, tmp_path / "out", dtype)
    check(tmp_path / "out")


@pytest.mark.parametrize("layout", ["portable", "packed"])
def test_values_of_a_quantized_model_have_the_stated_types_and_shapes(
    layout: Layout, tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    pruned = pruned_checkpoint(source, tmp_path / "pruned", ((24, 0, 1, 7, 16, 24),) * 3)
    settings = QuantizeSettings(experts="int4", dense="int8", embedding="int8")
    (tmp_path / "quantized").mkdir()
    quantize.run(Job(settings, source, {"prune": pruned}, tmp_path / "quantized"))
    export_model(tmp_path / "quantized", tmp_path / "out", "float32", layout=layout)
    check(tmp_path / "out")


@pytest.mark.parametrize("layout", ["portable", "packed"])
def test_the_tools_of_onnx_runtime_take_a_model(layout: Layout, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    export_model(source, tmp_path / "out", "float32", layout=layout)
    quantize_dynamic(tmp_path / "out" / "model.onnx", tmp_path / "dynamic.onnx")
    options = onnxruntime.SessionOptions()
    register(options)
    session = onnxruntime.InferenceSession(tmp_path / "dynamic.onnx", options)
    assert session.get_outputs()[0].name == "logits"


def test_symbolic_shape_inference_takes_a_portable_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the tool may leave weights in the current folder
    source = tiny_checkpoint(tmp_path / "source")
    export_model(source, tmp_path / "out", "float32")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    inferred = SymbolicShapeInference.infer_shapes(model, auto_merge=True)
    names = {value.name for value in inferred.graph.value_info}
    assert set(stated(model)) - {output.name for output in model.graph.output} <= names


def test_onnx_runtime_warns_of_nothing_but_the_input_with_a_default(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    export_model(source, tmp_path / "out", "float16")
    onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (warning,) = capfd.readouterr().err.splitlines()
    assert "Initializer logits_from appears in graph inputs" in warning
