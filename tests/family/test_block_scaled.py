"""Tests of FP8 weights with scales of blocks, as DeepSeek-V3 and Qwen publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_export.artifacts.ledger import Ledger
from moe_export.cli import main
from moe_export.errors import CheckpointError
from moe_export.families import open_checkpoint
from moe_export.formats.block_scaled import REASON
from moe_export.testing.families import DEEPSEEK_V3
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.small_runs import write_recipe

BLOCK = (24, 40)
"""Rows and columns of a block, which divide no axis of the tiny model evenly."""

QUANTIZED = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK)}


def scales_of(matrix: torch.Tensor) -> torch.Tensor:
    """Scale of each block: its largest magnitude over that of E4M3."""
    rows, columns = (-(-size // step) for size, step in zip(matrix.shape, BLOCK, strict=True))
    scales = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            block = matrix[i * 24 : (i + 1) * 24, j * 40 : (j + 1) * 40]
            scales[i, j] = block.abs().max() / 448
    return scales


def spread(scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Scale of each value of a matrix."""
    wide = scales.repeat_interleave(24, 0).repeat_interleave(40, 1)
    return wide[: shape[0], : shape[1]]


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint whose matrices in the layers are FP8, and the values that they stand for."""
    source = tiny_checkpoint(tmp_path / "fp8", base=DEEPSEEK_V3.config, dtype="bfloat16")
    values: dict[str, torch.Tensor] = {}
    for shard in sorted(source.glob("*.safetensors")):
        stored: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(shard).items():
            if tensor.ndim != 2 or ".layers." not in name or "mlp.gate.weight" in name:
                stored[name] = values[name] = tensor
                continue
            scales = scales_of(tensor.float())
            codes = (tensor.float() / spread(scales, tensor.shape)).to(torch.float8_e4m3fn)
            stored |= {name: codes, f"{name}_scale_inv": scales}
            values[name] = (codes.float() * spread(scales, tensor.shape)).bfloat16()
        save_file(stored, shard)
    index = source / "model.safetensors.index.json"
    weight_map = {
        name: shard.name for shard in source.glob("*.safetensors") for name in load_file(shard)
    }
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    edit(source, quantization_config=QUANTIZED)
    return source, values


def edit(source: Path, **keys: Any) -> None:
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_matrices_are_read_as_codes_times_the_scales_of_their_blocks(
    published: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    source, values = published
    checkpoint, spec = open_checkpoint(source)
    folded = 0
    for name in spec.tensors:
        actual = checkpoint.read(name)
        assert actual.dtype == checkpoint.tensors[name].dtype
        np.testing.assert_array_equal(actual.astype(np.float32), values[name].float().numpy())
        folded += checkpoint.dropped.get(f"{name}_scale_inv") == REASON
    assert folded == len(checkpoint.dropped) > 50


def test_a_pruned_checkpoint_is_bfloat16_and_its_ledger_names_the_scales(
    published: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    source, values = published
    recipe = write_recipe(
        tmp_path,
        source,
        importance={"scores": ["magnitude"]},
        plan={"keep": 1.0, "score": "magnitude"},
        prune={"refit": False, "distill_blocks": False},
        quantize=None,
    )
    run = tmp_path / "run"
    assert main(["run", str(recipe), "--run", str(run), "--until", "prune"]) == 0
    checkpoint, spec = open_checkpoint(run / "prune")
    assert "quantization_config" not in checkpoint.config
    dropped = Ledger.load(run / "prune").dropped
    assert dropped is not None
    name = spec.name("kv_latent", 1)
    assert dropped[f"{name}_scale_inv"] == REASON
    written = checkpoint.read(name).astype(np.float32)
    np.testing.assert_array_equal(written, values[name].float().numpy())


def test_a_matrix_without_fitting_scales_is_refused(
    published: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    source, _ = published
    edit(source, quantization_config=QUANTIZED | {"weight_block_size": [24, 16]})
    with pytest.raises(CheckpointError, match=r"needs scales .*_scale_inv of shape"):
        open_checkpoint(source)
    edit(source, quantization_config=QUANTIZED | {"weight_block_size": None})
    with pytest.raises(CheckpointError, match="quantized by FP8"):
        open_checkpoint(source)
