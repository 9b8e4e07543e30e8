from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from moe_export.checkpoint import LARGEST_JSON_BYTES, Checkpoint, CheckpointWriter
from moe_export.errors import CheckpointError, ResourceError


def write(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    with CheckpointWriter(directory, {"model_type": "x"}, num_shards=2) as writer:
        writer.write_shard({"a": np.arange(6, dtype=np.float16).reshape(2, 3)})
        writer.write_shard({"b": np.ones(4, ml_dtypes.bfloat16), "c": np.zeros((0, 3), np.float32)})
    return directory


def test_what_is_written_reads_back_in_its_own_dtype(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write(tmp_path))
    assert checkpoint.config == {"model_type": "x"}
    assert checkpoint.tensors["b"].dtype == ml_dtypes.bfloat16
    assert checkpoint.tensors["c"].shape == (0, 3)
    assert np.array_equal(checkpoint.read("a"), np.arange(6).reshape(2, 3))
    assert checkpoint.tensors["a"].size_bytes == 12


def test_a_tensor_is_let_go_before_the_next_one_is_made(tmp_path: Path) -> None:
    def tensors() -> Iterator[NDArray[np.float32]]:
        first = np.zeros(3, np.float32)
        held = weakref.ref(first)
        yield first
        del first
        assert held() is None
        yield np.ones(3, np.float32)

    layout = dict.fromkeys("ab", (np.dtype(np.float32), (3,)))
    with CheckpointWriter(tmp_path, {"model_type": "x"}, num_shards=1) as writer:
        writer.stream_shard(layout, tensors())
    assert Checkpoint(tmp_path).read("b").tolist() == [1, 1, 1]


def test_an_interrupted_write_does_not_look_like_a_checkpoint(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, {}, num_shards=1)
    writer.write_shard({"a": np.zeros(1, np.float32)})
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002.*the shard is missing"):
        Checkpoint(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    shard = write(tmp_path) / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model-00001.*truncated or damaged"):
        Checkpoint(tmp_path)


def test_an_index_that_promises_more_than_the_shards_hold_is_refused(tmp_path: Path) -> None:
    index = write(tmp_path) / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["d"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="tensor d is missing"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "shard", [5, None, ["a"], "\ud800", "a\0b", "..", "", "a\x1b[31m", "a" * 300, "b/c"]
)
def test_a_shard_is_a_file_name(tmp_path: Path, shard: object) -> None:
    index = write(tmp_path) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="is not a plain file name") as caught:
        Checkpoint(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("adapter_model.safetensors", "is an adapter; merge it"),
        ("model-00001-of-00002.safetensors", "is a part of the weights; copy their index too"),
        ("consolidated.00.pth", "has the names of another format"),
        ("model.fp16.safetensors", "has another name"),
        ("pytorch_model.bin", "is a pickle, which could run code; convert it"),
        ("model-q4.gguf", "is of llama.cpp; take the checkpoint"),
        ("model.onnx", "is an exported model; take the checkpoint"),
        ("notes.txt", "give the directory of a safetensors checkpoint"),
    ],
)
def test_weights_of_another_kind_come_with_advice(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"neither .*{advice}"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path) / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(CheckpointError, match=f"{name} is a pointer of Git LFS.*git lfs pull"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a": ' * 100_000, "nested too deep"),
        ('{"a": ' + "1" * 5000 + "}", "cannot be read as JSON"),
        ("\ufeff{}", "cannot be read as JSON"),
        ('{"unused": -Infinity}', "holds a value that JSON in UTF-8 cannot .*Out of range"),
        ('{"unused": [{"a": 1e999}]}', "holds a value that JSON in UTF-8 cannot .*Out of range"),
        ('{"unused": "\\ud800"}', "holds a value that JSON in UTF-8 cannot .*surrogates"),
        ("[]", "expected a JSON object, found list"),
        (" " * (LARGEST_JSON_BYTES + 1), "expected at most 67108864"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    (write(tmp_path) / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path) / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(CheckpointError, match=f"{name} is not a file"):
        Checkpoint(tmp_path)


def test_an_index_cannot_point_outside_the_directory(tmp_path: Path) -> None:
    index = write(tmp_path / "inner") / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        Checkpoint(tmp_path / "inner")


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, value: float, dtype: type[np.generic]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    largest = ml_dtypes.finfo(dtype).max
    tensors = {
        "finite": np.array([largest, -largest, 0], np.float64).astype(dtype),
        "bad": np.array([largest, value, value], np.float64).astype(dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert np.array_equal(checkpoint.read("finite"), tensors["finite"])
    with pytest.raises(CheckpointError, match="tensor bad holds 2 values that are not finite"):
        checkpoint.read("bad")


def test_an_unknown_storage_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.zeros(1, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="stored as I8"):
        Checkpoint(tmp_path)


def test_the_fingerprint_notices_other_weights_of_the_same_shape(tmp_path: Path) -> None:
    before = Checkpoint(write(tmp_path)).fingerprint()
    assert Checkpoint(tmp_path).fingerprint() == before
    shard = tmp_path / "model-00001-of-00002.safetensors"
    save_file({"a": np.ones((2, 3), np.float16)}, shard, metadata={"format": "pt"})
    assert Checkpoint(tmp_path).fingerprint() != before


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "absent", {}, num_shards=1)
    with pytest.raises(ResourceError, match="cannot be written"):
        writer.write_shard({"a": np.zeros(1, np.float32)})
