"""Tests of the graph: its interface, its names, its checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError
from moe_export.families import spec_of
from moe_export.graph import build_decoder
from moe_export.graph.rotary import rotary_table
from moe_export.op import spec as op_spec
from moe_export.op.spec import Dtype
from moe_export.testing.tiny import CONFIG, pruned_checkpoint, tiny_checkpoint
from tests.helpers.decoding import exported

WIDTHS = ((24, 0, 1, 7, 16, 24),) * 3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_exported_model_passes_the_full_checker(tmp_path: Path, dtype: Dtype) -> None:
    source = tiny_checkpoint(tmp_path / "source", tie_word_embeddings=True)
    pruned = pruned_checkpoint(source, tmp_path / "pruned", WIDTHS)
    directory = exported(pruned, tmp_path / "onnx", dtype)
    onnx.checker.check_model(directory / "model.onnx", full_check=True)


def test_the_interface_is_the_one_that_runtimes_expect(tmp_path: Path) -> None:
    directory = exported(tiny_checkpoint(tmp_path / "source"), tmp_path / "onnx")
    model = onnx.load(directory / "model.onnx", load_external_data=False)

    def described(value: onnx.ValueInfoProto) -> tuple[str, list[int | str]]:
        shape = value.type.tensor_type.shape
        return value.name, [dim.dim_param or dim.dim_value for dim in shape.dim]

    inputs = [described(value) for value in model.graph.input]
    past = ["batch_size", 2, "past_sequence_length", 16]
    assert inputs[:2] == [
        ("input_ids", ["batch_size", "sequence_length"]),
        ("attention_mask", ["batch_size", "total_sequence_length"]),
    ]
    assert inputs[2:-1] == [
        (f"past_key_values.{layer}.{kind}", past) for layer in range(3) for kind in ("key", "value")
    ]
    assert inputs[-1] == ("logits_from", [1])
    outputs = [described(value) for value in model.graph.output]
    present = ["batch_size", 2, "total_sequence_length", 16]
    assert outputs[0] == ("logits", ["batch_size", "sequence_length", 264])
    assert outputs[1:] == [
        (f"present.{layer}.{kind}", present) for layer in range(3) for kind in ("key", "value")
    ]
    assert {entry.domain: entry.version for entry in model.opset_import} == {
        "": 21,
        "com.microsoft": 1,
        "moe_export": 1,
    }
    assert {prop.key: prop.value for prop in model.metadata_props} == {
        "moe_export.model_type": "qwen2_moe",
        "moe_export.format_version": "1",
    }


def test_there_is_one_ragged_node_per_layer_and_one_function_for_all(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    pruned = pruned_checkpoint(source, tmp_path / "pruned", WIDTHS)
    directory = exported(pruned, tmp_path / "onnx")
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == op_spec.NAME]
    assert [node.name for node in nodes] == [f"layers.{layer}.experts" for layer in range(3)]
    assert [(f.domain, f.name) for f in model.functions] == [(op_spec.DOMAIN, op_spec.NAME)]
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    for layer, node in enumerate(nodes):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"num_experts": 6, "activation": b"swiglu", "format": b"float32"}
        assert attributes.keys() == op_spec.ATTRIBUTES.keys()
        weights = [shapes[name] for name in node.input[4:]]
        widths = (*WIDTHS[0], CONFIG["shared_expert_intermediate_size"])
        assert weights == [s for w in widths for s in ((64, w), (64, w), (w, 64))]
        assert node.input[3] == f"layers.{layer}.shared_expert.share"


def test_every_weight_bears_the_name_of_its_tensors_in_the_checkpoint(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    model = build_decoder(spec_of(CONFIG), "float32", Checkpoint(source))
    joined = "model.layers.0.self_attn.q_proj.weight+k_proj.weight+v_proj.weight"
    assert joined in model.graph.initializers
    actual = []
    for name in model.graph.initializers:
        first, *others = name.split("+")
        prefix = first.removesuffix(".weight").removesuffix(".bias").rpartition(".")[0]
        actual += [first, *(f"{prefix}.{other}" for other in others)]
    tensors = set(Checkpoint(source).tensors)
    constants = set(actual) - tensors
    assert tensors <= set(actual)
    assert all(
        name.startswith(("ints_", "rotary.", "two", "epsilon", "logits_from")) for name in constants
    )


def test_a_weight_holds_the_checkpoint_values_transposed_for_matmul(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_checkpoint(tmp_path / "source", dtype="bfloat16"))
    model = build_decoder(spec_of(CONFIG), "float16", checkpoint)
    name = "model.layers.1.mlp.experts.3.gate_proj.weight"
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    expected = checkpoint.read(name).T.astype(np.float16)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    parts = [f"model.layers.2.self_attn.{part}_proj.bias" for part in "qkv"]
    joined = "model.layers.2.self_attn.q_proj.bias+k_proj.bias+v_proj.bias"
    tensor = model.graph.initializers[joined].const_value
    assert tensor is not None
    expected = np.concatenate([checkpoint.read(part) for part in parts]).astype(np.float16)
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_a_graph_without_a_checkpoint_is_the_same_but_has_no_values(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_checkpoint(tmp_path / "source"))
    spec = spec_of(CONFIG)
    full, empty = (build_decoder(spec, "float32", weights) for weights in (checkpoint, None))
    assert [node.name for node in full.graph] == [node.name for node in empty.graph]
    for name, value in full.graph.initializers.items():
        assert empty.graph.initializers[name].shape == value.shape
    tensor = empty.graph.initializers["lm_head.weight"].const_value
    assert tensor is not None
    with pytest.raises(CheckpointError, match=r"lm_head.weight.*without a checkpoint"):
        tensor.numpy()


def test_the_rotary_angles_of_trained_positions_equal_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    spec = spec_of(CONFIG | {"max_position_embeddings": 64})
    cos_PF, sin_PF = (rotary_table(spec, f, np.arange(64)) for f in (np.cos, np.sin))
    size = spec.head_dim
    frequency_F = 1.0 / (spec.rope_theta ** (torch.arange(0, size, 2).float() / size))
    angle_PF = (torch.arange(64).float()[:, None] * frequency_F).double().numpy()
    # torch's float32 power may differ in the last bit, and position 63 multiplies the difference.
    np.testing.assert_allclose(cos_PF, np.cos(angle_PF), rtol=0, atol=63 * 2**-23)
    np.testing.assert_allclose(sin_PF, np.sin(angle_PF), rtol=0, atol=63 * 2**-23)
