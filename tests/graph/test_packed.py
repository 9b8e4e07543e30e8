"""Tests of models with packed experts: their bytes, their logits and their requirements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest

from moe_export.checkpoint import Checkpoint
from moe_export.errors import ArtifactError
from moe_export.families import spec_of
from moe_export.graph import predicted_bytes
from moe_export.graph.layer_outputs import with_layer_outputs
from moe_export.op.spec import Dtype
from moe_export.ort.session import OrtModel
from moe_export.quantization import Quantization
from moe_export.recipe import QuantizeSettings
from moe_export.stages.job import Job
from moe_export.stages.quantize import run as quantize
from moe_export.testing.tiny import CONFIG, pruned_checkpoint, tiny_checkpoint
from tests.helpers.decoding import exported

WIDTHS = ((24, 0, 1, 7, 16, 23), (3, 24, 0, 0, 11, 1), (0, 0, 0, 0, 0, 0))
SEQUENCES = [list(range(40)), [7, 7, 7], [200]]

INT4 = QuantizeSettings(experts="int4")
SETTINGS = {
    "float": None,
    "int4": QuantizeSettings(experts="int4", dense="int4", lm_head="int8"),
    "int8": QuantizeSettings(experts="int8", dense="int8", group_size=64),
    "uint8": QuantizeSettings(experts="uint8", dense="uint4", lm_head="float"),
    "uint4": QuantizeSettings(experts="uint4", dense="uint8", group_size=64),
    "nf4": QuantizeSettings(experts="nf4"),
}


def checkpoint_of(folder: Path, settings: QuantizeSettings | None, **overrides: Any) -> Path:
    source = tiny_checkpoint(folder / "source", **overrides)
    pruned = pruned_checkpoint(source, folder / "pruned", WIDTHS)
    if settings is None:
        return pruned
    out = folder / "quantized"
    out.mkdir()
    quantize(Job(settings=settings, model=pruned, folders={"prune": pruned}, out=out))
    return out


@pytest.mark.parametrize("dtype", get_args(Dtype))
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("hidden", [{}, {"hidden_size": 44, "head_dim": 16}], ids=str)
def test_a_packed_model_gives_the_logits_of_the_portable_one_and_has_the_predicted_bytes(
    tmp_path: Path, hidden: dict[str, int], settings: QuantizeSettings | None, dtype: Dtype
) -> None:
    checkpoint = checkpoint_of(tmp_path, settings, **hidden)
    portable = exported(checkpoint, tmp_path / "portable", dtype, linear="panels")
    packed = exported(checkpoint, tmp_path / "packed", dtype, "packed")
    expected = OrtModel(portable, operator="native").logits(SEQUENCES)
    for y, other in zip(OrtModel(packed).logits(SEQUENCES), expected, strict=True):
        np.testing.assert_array_equal(y, other)

    spec = spec_of(Checkpoint(checkpoint).config)
    predicted = predicted_bytes(spec, dtype, "packed")
    assert predicted.total_bytes == (packed / "model.onnx.data").stat().st_size
    # All other weights take the same bytes as in the portable file, except for the headers.
    before = predicted_bytes(spec, dtype, linear="panels")
    assert before.total_bytes == (portable / "model.onnx.data").stat().st_size
    for name in ("router", "norms"):
        assert predicted.by_class[name] == before.by_class[name]
    header_bytes = 48 + 8 * 7 + 24 + 2 * 64
    assert predicted.by_class["constants"] == before.by_class["constants"] + 3 * header_bytes + 64
    assert (predicted.by_class["scales"] > 0) == (settings is not None)
    routed = sum(predicted.experts_by_layer)
    if settings is None:
        assert routed == predicted.by_class["experts"]
    assert predicted.experts_by_layer[2] == 0


def test_the_bytes_of_aligned_widths_are_those_of_the_weights() -> None:
    spec = replace(
        spec_of(CONFIG),
        widths=((32, 0, 64, 96, 32, 32),) * 3,
        shared_widths=(64,) * 3,
        hidden_size=64,
    )
    rows = 3 * 64 * 256  # weights of a layer's routed experts
    for dtype, itemsize in (("float32", 4), ("float16", 2)):
        actual = predicted_bytes(spec, dtype, "packed")  # type: ignore[arg-type]
        assert actual.by_class["experts"] == 3 * rows * itemsize
        # The class of the shared expert includes its router.
        assert actual.by_class["shared_expert"] == 3 * (3 * 64 * 64 + 64) * itemsize
        assert actual.experts_by_layer == (rows * itemsize,) * 3
        # Query, key and value have 64 + 32 + 32 columns and a bias in float32, the output has 64.
        assert actual.by_class["attention"] == 3 * (64 * (128 + 64) * itemsize + 128 * 4)
    quantized = replace(spec, quantization=Quantization("int4", group_size=128))
    actual = predicted_bytes(quantized, "float32", "packed")
    assert actual.by_class["experts"] == 3 * rows // 2
    assert actual.by_class["scales"] == 3 * (rows + 3 * 64 * 64) // 32 * 2
    assert actual.experts_by_layer == (rows // 2 + rows // 16,) * 3


def test_a_packed_model_has_a_node_of_five_inputs_to_a_layer(tmp_path: Path) -> None:
    directory = exported(checkpoint_of(tmp_path, INT4), tmp_path / "onnx", "float32", "packed")
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == "RaggedMoEPacked"]
    assert [len(node.input) for node in nodes] == [5, 5, 5]
    assert not any(node.op_type == "RaggedMoE" for node in model.graph.node)
    assert not model.functions
    onnx.checker.check_model(str(directory / "model.onnx"), full_check=True)


@pytest.mark.parametrize("biased", [False, True])
def test_every_matrix_outside_the_experts_is_one_node(tmp_path: Path, biased: bool) -> None:
    checkpoint = checkpoint_of(tmp_path, INT4, qkv_bias=biased)
    found = {}
    for layout, linear in (("portable", "panels"), ("packed", "auto"), ("packed", "standard")):
        directory = exported(checkpoint, tmp_path / layout / linear, "float32", layout, linear)  # type: ignore[arg-type]
        nodes = onnx.load(directory / "model.onnx", load_external_data=False).graph.node
        found[layout, linear] = [
            (node.op_type, len(node.input)) for node in nodes if node.op_type.startswith("Linear")
        ]
    qkv = 3 if biased else 2
    assert found["portable", "panels"] == [("Linear", qkv), ("Linear", 2)] * 3 + [("Linear", 2)]
    assert found["packed", "auto"] == [("LinearPacked", 2)] * 7
    assert not found["packed", "standard"]


@pytest.mark.parametrize("settings", [SETTINGS["float"], SETTINGS["int4"]], ids=["float", "int4"])
def test_without_the_library_linear_nodes_give_the_logits_of_standard_ones(
    tmp_path: Path, settings: QuantizeSettings | None
) -> None:
    checkpoint = checkpoint_of(tmp_path, settings)
    standard, panels = (
        OrtModel(
            exported(checkpoint, tmp_path / linear, "float32", "portable", linear),
            operator="portable",
        )  # type: ignore[arg-type]
        for linear in ("standard", "panels")
    )
    expected = standard.logits(SEQUENCES)
    for y, other in zip(panels.logits(SEQUENCES), expected, strict=True):
        np.testing.assert_allclose(y, other, rtol=0, atol=1e-5)


def test_two_packed_exports_are_the_same_to_the_byte(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, INT4)
    first, second = (
        exported(checkpoint, tmp_path / name, "float32", "packed") for name in ("first", "second")
    )
    for name in ("model.onnx", "model.onnx.data"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_packed_model_does_not_load_without_the_library(tmp_path: Path) -> None:
    directory = exported(checkpoint_of(tmp_path, None), tmp_path / "onnx", "float32", "packed")
    with pytest.raises(
        ArtifactError, match=r"moe_export:LinearPacked.*is not a registered function/op"
    ):
        OrtModel(directory, operator="portable")


def test_layer_outputs_of_a_packed_model_are_those_of_the_portable_one(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, None)
    portable, packed = (
        with_layer_outputs(exported(checkpoint, tmp_path / layout, "float32", layout), [1, 2, 3])
        for layout in ("portable", "packed")
    )
    for ours, theirs in zip(packed, portable, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
