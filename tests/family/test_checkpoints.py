"""Tests of the families' checkpoints in both layouts of transformers, and of refused ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.errors import CheckpointError
from moe_export.families import FAMILIES, open_checkpoint, spec_of
from moe_export.families.base import ModelSpec
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import CONFIG
from tests.family.conftest import Subject

VARIANTS = [
    pytest.param(row, variant, id=f"{row.model_type}-{variant}")
    for row in ROWS
    for variant in ({}, *row.variants)
]
REFUSED = [
    pytest.param(row, overrides, word, id=f"{row.model_type}-{overrides}")
    for row in ROWS
    for overrides, word in row.refused
]
LAYOUTS = {"original": True, "fused": False} if transformers.__version__[0] != "4" else {}


def saved_by_transformers(config: dict[str, Any], out: Path, **options: Any) -> Path:
    """Checkpoint of a random model, saved by transformers."""
    # transformers writes into the nested objects that it is given.
    keys = copy.deepcopy({key: value for key, value in config.items() if key != "model_type"})
    torch.manual_seed(0)
    made = AutoConfig.for_model(config["model_type"], **keys)
    model = AutoModelForCausalLM.from_config(made)
    model.save_pretrained(out, **options)
    return out


def test_every_family_has_a_row() -> None:
    assert {row.model_type for row in ROWS} == FAMILIES.keys()


@pytest.mark.parametrize(("row", "variant"), VARIANTS)
def test_every_tensor_that_transformers_saves_is_matched_exactly_once(
    row: FamilyRow, variant: dict[str, Any], tmp_path: Path
) -> None:
    directory = saved_by_transformers(row.config | variant, tmp_path / "saved")
    checkpoint, spec = open_checkpoint(directory)
    assert spec == spec_of(row.config | variant)
    assert checkpoint.tensors.keys() == spec.tensors.keys()


@pytest.mark.skipif(not LAYOUTS, reason="transformers 4 writes one layout alone")
@pytest.mark.parametrize(("row", "variant"), VARIANTS)
def test_both_layouts_of_transformers_5_hold_the_same_values(
    row: FamilyRow, variant: dict[str, Any], tmp_path: Path
) -> None:
    opened = {
        layout: open_checkpoint(
            saved_by_transformers(
                row.config | variant, tmp_path / layout, save_original_format=original
            )
        )
        for layout, original in LAYOUTS.items()
    }
    (original, spec), (fused, _) = opened["original"], opened["fused"]
    assert any(info.part for info in fused.tensors.values())
    assert not any(info.part for info in original.tensors.values())
    for name in spec.tensors:
        assert fused.tensors[name].shape == original.tensors[name].shape
        np.testing.assert_array_equal(fused.read(name), original.read(name), err_msg=name)


def test_an_unknown_tensor_stops(subject: Subject, tmp_path: Path) -> None:
    checkpoint = Checkpoint(subject.source)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    tensors["model.layers.2.self_attn.sinks"] = np.zeros(4, np.float32)
    with CheckpointWriter(tmp_path, checkpoint.config, num_shards=1) as writer:
        writer.write_shard(tensors)
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.self_attn\.sinks .* is unknown"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("row", "overrides", "word"), REFUSED)
def test_what_is_not_understood_is_refused_by_name(
    row: FamilyRow, overrides: dict[str, Any], word: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{word}") as caught:
        spec_of(row.config | overrides)
    assert row.model_type in str(caught.value)


def test_layers_without_experts_are_those_of_transformers(subject: Subject) -> None:
    spec = spec_of(subject.row.config)
    layers = subject.stock.model.layers
    for number, layer in enumerate(layers):
        block = getattr(layer, spec.family.moe_module, None) or layer.mlp
        assert hasattr(block, "experts") == spec.has_experts(number)
    dense = [number for number in range(3) if not spec.has_experts(number)]
    assert dense == list(subject.row.dense_layers)


def test_gpt_oss_is_refused_with_the_reason() -> None:
    with pytest.raises(CheckpointError, match="'gpt_oss' is not supported: its experts have biase"):
        spec_of({"model_type": "gpt_oss"})


def fused_by_hand(directory: Path, spec: ModelSpec, out: Path, dtype: str = "float32") -> Path:
    """Checkpoint in the layout of transformers 5, independent of the installed version."""
    checkpoint = Checkpoint(directory)
    tensors = {name: checkpoint.read(name).astype(dtype) for name in checkpoint.tensors}
    for layer in range(spec.num_layers):
        stacked = {
            role: np.stack(
                [tensors.pop(spec.name(role, layer, expert)) for expert in range(spec.num_experts)]
            )
            for role in ("gate", "up", "down")
        }
        prefix = f"model.layers.{layer}.mlp.experts."
        tensors[f"{prefix}gate_up_proj"] = np.concatenate([stacked["gate"], stacked["up"]], axis=1)
        tensors[f"{prefix}down_proj"] = stacked["down"]
    out.mkdir()
    with CheckpointWriter(out, checkpoint.config, num_shards=1) as writer:
        writer.write_shard(tensors)
    return out


@pytest.fixture
def fused(tmp_path: Path) -> tuple[Path, Path]:
    """Checkpoint of a Qwen2-MoE in bfloat16, and its copy with fused tensors."""
    from moe_export.testing.tiny import tiny_checkpoint

    source = tiny_checkpoint(tmp_path / "source", dtype="bfloat16")
    return source, fused_by_hand(source, spec_of(CONFIG), tmp_path / "fused", "bfloat16")


def test_fused_experts_are_read_one_by_one(fused: tuple[Path, Path]) -> None:
    plain, (checkpoint, spec) = Checkpoint(fused[0]), open_checkpoint(fused[1])
    for name in spec.tensors:
        actual = checkpoint.read(name)
        assert actual.dtype == plain.tensors[name].dtype
        np.testing.assert_array_equal(actual, plain.read(name), err_msg=name)


def test_reading_one_expert_does_not_copy_the_layer(
    fused: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_export import checkpoint as module

    asked: list[Any] = []
    real = module.safe_open

    class Watched:
        def __init__(self, *args: Any) -> None:
            self._file = real(*args)

        def __enter__(self) -> Any:
            self._file.__enter__()
            return self

        def __exit__(self, *args: object) -> None:
            self._file.__exit__(*args)

        def get_slice(self, name: str) -> Any:
            asked.append(name)
            return self._file.get_slice(name)

    checkpoint, spec = open_checkpoint(fused[1])
    monkeypatch.setattr(module, "safe_open", Watched)
    checkpoint.read(spec.name("up", 1, 3))
    assert asked == ["model.layers.1.mlp.experts.gate_up_proj"]


def test_a_fused_tensor_of_the_wrong_shape_is_named(fused: tuple[Path, Path]) -> None:
    shard = next(fused[1].glob("*.safetensors"))
    tensors = load_file(shard)
    name = "model.layers.0.mlp.experts.down_proj"
    tensors[name] = tensors[name][:, :, :-1].copy()
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=r"down_proj has shape \[6, 64, 23\].*\[6, 64, 24\]"):
        open_checkpoint(fused[1])


def test_an_expert_that_is_there_twice_is_named(fused: tuple[Path, Path]) -> None:
    shard = next(fused[1].glob("*.safetensors"))
    tensors = load_file(shard)
    name = "model.layers.0.mlp.experts.2.up_proj.weight"
    tensors[name] = np.zeros((24, 64), np.float32)
    save_file(tensors, shard)
    index = fused[1] / "model.safetensors.index.json"
    shard.rename(fused[1] / "model.safetensors")
    index.unlink()
    with pytest.raises(CheckpointError, match=r"experts\.2\.up_proj\.weight is there by itself"):
        open_checkpoint(fused[1])
