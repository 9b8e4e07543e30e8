"""Tests of the quantize stage with GPTQ, on the tiny model and random tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.quantization import QuantizationRecord
from moe_export.checkpoint import Checkpoint
from moe_export.families import check_tensors, spec_of
from moe_export.passes.batches import batches_of
from moe_export.passes.carried import CarriedModel
from moe_export.recipe import QuantizeSettings
from moe_export.stages.job import Job
from moe_export.stages.quantize import run
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from moe_export.torch_model import load_torch_model

WIDTHS = ((24, 0, 1, 7, 16, 24),) * 3
LENGTHS = (50, 40, 33, 60, 50, 50, 41, 2) * 6


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gptq")
    source = tiny_checkpoint(folder / "model")
    return pruned_checkpoint(source, folder / "pruned", WIDTHS)


def calibration(folder: Path, lengths: tuple[int, ...]) -> Path:
    folder.mkdir()
    random = np.random.default_rng(7)
    tokens = random.integers(0, 256, sum(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    zeros = np.zeros(len(lengths), np.int32)
    Calibration(tokens, offsets, zeros, zeros).save(folder)
    return folder


def quantized(
    pruned: Path, out: Path, lengths: tuple[int, ...], **settings: Any
) -> tuple[Path, QuantizationRecord]:
    out.mkdir()
    folders = {"prune": pruned, "calibrate": calibration(out.parent / f"{out.name}-c", lengths)}
    run(Job(QuantizeSettings(**settings), pruned, folders, out))
    return out, QuantizationRecord.load(out)


def test_running_layer_by_layer_gives_the_hidden_states_of_the_model(pruned: Path) -> None:
    random = np.random.default_rng(1)
    sequences = [random.integers(0, 256, length).astype(np.int32) for length in (9, 5, 12)]
    batches = batches_of(sequences, 24)
    layered = CarriedModel(pruned, batches)
    whole = load_torch_model(pruned, torch.float32)
    for layer in range(layered.spec.num_layers):
        with layered.layer(layer):
            layered.hidden_BLD = layered.outputs(layer)
        assert all(p.is_meta for p in layered.model.parameters()), "a layer stayed in memory"
    for batch, hidden_BLD in zip(batches, layered.hidden_BLD, strict=True):
        with torch.no_grad():
            expected = whole.base_model(input_ids=batch.tokens_BL, use_cache=False)
            found = whole.base_model.norm(hidden_BLD)
        torch.testing.assert_close(found, expected.last_hidden_state, rtol=0, atol=0)


@pytest.mark.parametrize(
    "every",
    [{"experts": "int4", "dense": "int4"}, {"experts": "nf4", "dense": "uint4", "lm_head": "int4"}],
    ids=str,
)
def test_logits_on_other_tokens_lose_less_than_by_rounding(
    pruned: Path, tmp_path: Path, every: dict[str, str]
) -> None:
    lengths = LENGTHS * 2
    made = {
        method: quantized(pruned, tmp_path / method, lengths, method=method, **every)
        for method in ("mse", "gptq")
    }
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (40, 50))
    with torch.no_grad():
        expected = load_torch_model(pruned, torch.float32)(ids).logits
        lost = {
            method: float(
                (load_torch_model(folder, torch.float32)(ids).logits - expected).square().mean()
            )
            for method, (folder, _) in made.items()
        }
    # Observed: 0.87; inputs of random weights are hardly correlated, so there is little to gain.
    assert lost["gptq"] < 0.95 * lost["mse"]
    folder, record = made["gptq"]
    after = Checkpoint(folder)
    check_tensors(after, spec_of(after.config))
    used = {entry.method for entry in record.tensors.values() if entry.action == "quantized"}
    assert used == {"gptq"}, record.fallbacks
    assert record.counts.kept > 0


def test_experts_that_too_few_tokens_reach_are_rounded_and_named(
    pruned: Path, tmp_path: Path
) -> None:
    out, record = quantized(pruned, tmp_path / "out", (30, 20), method="gptq")
    plain, _ = quantized(pruned, tmp_path / "plain", (30, 20), method="mse")
    assert record.fallbacks
    for fallback in record.fallbacks:
        assert fallback.tokens < fallback.inputs
        assert fallback.method == "mse"
        found, expected = (Checkpoint(folder).read(fallback.tensor) for folder in (out, plain))
        np.testing.assert_array_equal(found, expected)
    named = {fallback.tensor for fallback in record.fallbacks}
    for name, entry in record.tensors.items():
        if entry.action == "quantized" and name not in named:
            inputs = spec_of(Checkpoint(out).config).tensors[name].shape[1]
            assert entry.method == "gptq" or entry.tokens < inputs


def test_it_is_the_same_bytes_again(pruned: Path, tmp_path: Path) -> None:
    made = [quantized(pruned, tmp_path / n, LENGTHS, method="gptq")[0] for n in ("one", "two")]
    first, second = (Checkpoint(folder) for folder in made)
    for name in first.tensors:
        np.testing.assert_array_equal(first.read(name), second.read(name))
