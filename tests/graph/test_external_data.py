"""Tests of the data file: placement of weights, size, and failed writes."""

from __future__ import annotations

import errno
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.errors import CheckpointError, ResourceError
from moe_export.families import spec_of
from moe_export.families.base import TENSOR_CLASSES
from moe_export.graph import build_decoder, predicted_bytes, save_model, weights
from moe_export.graph.external_data import layout
from moe_export.graph.weights import join_names
from moe_export.op.spec import Dtype
from moe_export.testing.tiny import CONFIG, pruned_checkpoint, tiny_checkpoint
from tests.helpers.decoding import exported

ODD = ((24, 0, 1, 7, 16, 23), (3, 24, 0, 0, 11, 1), (0, 0, 0, 0, 0, 0))
OVERRIDES: tuple[dict[str, Any], ...] = (
    {},
    {"tie_word_embeddings": True, "qkv_bias": False},
    {"vocab_size": 5001},  # an embedding of more than 1 MiB, followed by weights
    {"hidden_size": 44, "head_dim": 16},  # sizes that need padding between weights
)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("overrides", OVERRIDES, ids=str)
def test_predicted_bytes_are_the_bytes_on_disk(
    tmp_path: Path, overrides: dict[str, Any], prune: bool, dtype: Dtype
) -> None:
    directory = tiny_checkpoint(tmp_path / "source", **overrides)
    if prune:
        directory = pruned_checkpoint(directory, tmp_path / "pruned", ODD)
    out = exported(directory, tmp_path / "onnx", dtype)
    spec = spec_of(Checkpoint(directory).config)
    predicted = predicted_bytes(spec, dtype)
    assert predicted.total_bytes == (out / "model.onnx.data").stat().st_size
    itemsize = np.dtype(dtype).itemsize
    for tensor_class in TENSOR_CLASSES:
        elements = sum(t.elements for t in spec.tensors.values() if t.tensor_class == tensor_class)
        assert predicted.by_class[tensor_class] == elements * itemsize
    assert predicted.by_class["constants"] == 2 * 128 * 8 * itemsize
    assert predicted.by_class["padding"] > 0 or spec.hidden_size == 64
    rows = [sum(layer) for layer in spec.widths]
    assert predicted.experts_by_layer == tuple(3 * spec.hidden_size * r * itemsize for r in rows)
    assert predicted.as_dict()["total_bytes"] == predicted.total_bytes


@pytest.mark.parametrize("hidden_size", [64, 44])
def test_weights_begin_on_cache_lines_and_large_ones_on_pages(hidden_size: int) -> None:
    spec = replace(spec_of(CONFIG), hidden_size=hidden_size, vocab_size=20001, widths=ODD)
    placements = layout(build_decoder(spec, "float16", None))
    end = 0
    for name, offset, size_bytes in placements:
        alignment = 4096 if size_bytes >= 1 << 20 else 64
        assert offset % alignment == 0, name
        assert 0 <= offset - end < alignment, name
        end = offset + size_bytes
    assert sum(placement.size_bytes >= 1 << 20 for placement in placements) == 2


def test_only_integers_scalars_and_empty_weights_stay_in_the_graph(tmp_path: Path) -> None:
    source = pruned_checkpoint(tiny_checkpoint(tmp_path / "source"), tmp_path / "pruned", ODD)
    directory = exported(source, tmp_path / "onnx")
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    inside = [w for w in model.graph.initializer if w.data_location != onnx.TensorProto.EXTERNAL]
    assert inside
    for weight in inside:
        assert weight.data_type == onnx.TensorProto.INT64 or 0 in weight.dims or not weight.dims


def test_what_lies_in_the_file_is_what_the_graph_refers_to(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    checkpoint = Checkpoint(source)
    model = build_decoder(spec_of(checkpoint.config), "float32", checkpoint)
    save_model(model, tmp_path)
    loaded = onnx.load(tmp_path / "model.onnx")
    assert {w.name for w in loaded.graph.initializer} == set(model.graph.initializers)
    for weight in loaded.graph.initializer:
        tensor = model.graph.initializers[weight.name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), tensor.numpy())


def test_two_exports_are_the_same_to_the_byte(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    first, second = (exported(source, tmp_path / name) for name in ("first", "second"))
    for name in ("model.onnx", "model.onnx.data"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_small_chunk_size_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pruned_checkpoint(tiny_checkpoint(tmp_path / "source"), tmp_path / "pruned", ODD)
    first = exported(source, tmp_path / "first", "float16")
    monkeypatch.setattr(weights, "CHUNK_BYTES", 100)
    second = exported(source, tmp_path / "second", "float16")
    data = "model.onnx.data"
    assert (first / data).read_bytes() == (second / data).read_bytes()


def test_writing_holds_one_weight_in_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(tmp_path / "source", moe_intermediate_size=1024, dtype="bfloat16")
    checkpoint = Checkpoint(source)
    model = build_decoder(spec_of(checkpoint.config), "float32", checkpoint)
    monkeypatch.setattr(weights, "CHUNK_BYTES", 1 << 14)
    tracemalloc.start()
    save_model(model, tmp_path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    total = (tmp_path / "model.onnx.data").stat().st_size
    largest_stored = 64 * 1024 * 2
    # Peak: the stored tensor, its bytes in safetensors, a mask of finite values, and the graph.
    assert peak_bytes < 3 * largest_stored + (1 << 20)
    assert peak_bytes < total / 8


def test_a_value_that_float16_cannot_hold_stops_the_export(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    checkpoint = Checkpoint(source)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    tensors[name][3, 5] = -70000
    (tmp_path / "large").mkdir()
    with CheckpointWriter(tmp_path / "large", checkpoint.config, num_shards=1) as writer:
        writer.write_shard(tensors)
    with pytest.raises(CheckpointError, match=f"{name}.*70000.*float16.*float32"):
        exported(tmp_path / "large", tmp_path / "onnx", "float16")
    assert list((tmp_path / "onnx").glob("model.onnx*")) == []


def test_a_full_disk_is_named_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(tmp_path / "source")

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ResourceError, match=r"model.onnx.data: no space left"):
        exported(source, tmp_path / "onnx")
    assert list((tmp_path / "onnx").iterdir()) == []


def test_joined_names_keep_what_differs() -> None:
    assert join_names(["a.b.weight"]) == "a.b.weight"
    assert join_names(["a.q.weight", "a.k.weight"]) == "a.q.weight+k.weight"
    assert join_names(["q", "k"]) == "q+k"
    assert CONFIG["model_type"] == "qwen2_moe"
