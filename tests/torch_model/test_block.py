"""Tests of the ragged block and of models built from it against stock transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError
from moe_export.testing.tiny import masked_checkpoint, pruned_checkpoint, tiny_checkpoint
from moe_export.torch_model import load_torch_model, recording
from moe_export.torch_model.load import to_torch
from tests.helpers.torch_models import ROUNDING, UNEQUAL, relative_error, some_tokens, stock_model

VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm_topk_prob": True, "num_experts_per_tok": 3},
    {"num_experts_per_tok": 1},
    {"num_experts_per_tok": 6, "tie_word_embeddings": True},
    {"qkv_bias": False, "rope_theta": 500.0},
]


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "stock")


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_block_output_equals_the_stock_block(tmp_path: Path, variant: dict[str, Any]) -> None:
    directory = tiny_checkpoint(tmp_path / "stock", **variant)
    x_BLD = torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(1))
    ours, theirs = load_torch_model(directory, torch.float32), stock_model(directory)
    for mine, stock_layer in zip(ours.base_model.layers, theirs.model.layers, strict=True):
        expected = stock_layer.mlp(x_BLD)
        expected = expected[0] if isinstance(expected, tuple) else expected  # transformers 4
        assert relative_error(mine.mlp(x_BLD), expected.detach()) < 1e-6


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_model_logits_equal_the_stock_model(tmp_path: Path, variant: dict[str, Any]) -> None:
    directory = tiny_checkpoint(tmp_path / "stock", **variant)
    tokens = some_tokens(2, 20)
    with torch.no_grad():
        expected = stock_model(directory)(tokens).logits
        actual = load_torch_model(directory, torch.float32)(tokens).logits
    assert relative_error(actual, expected) < ROUNDING


def test_masked_dimensions_equal_removed_dimensions(stock: Path, tmp_path: Path) -> None:
    pruned = pruned_checkpoint(stock, tmp_path / "pruned", UNEQUAL)
    masked_twin = masked_checkpoint(stock, tmp_path / "masked", UNEQUAL)
    tokens = some_tokens(2, 20)
    with torch.no_grad():
        masked = stock_model(masked_twin)(tokens).logits
        removed = load_torch_model(pruned, torch.float32)(tokens).logits
        whole = stock_model(stock)(tokens).logits
    assert float((masked - removed).abs().max()) < 1e-5
    assert float((masked - whole).abs().max()) > 0.1  # the removed dimensions had an effect


def test_a_model_without_any_dimension_left_still_runs(stock: Path, tmp_path: Path) -> None:
    nothing = ((0,) * 6,) * 3
    pruned = pruned_checkpoint(stock, tmp_path / "pruned", nothing)
    masked_twin = masked_checkpoint(stock, tmp_path / "masked", nothing)
    with torch.no_grad():
        masked = stock_model(masked_twin)(some_tokens(1, 9)).logits
        removed = load_torch_model(pruned, torch.float32)(some_tokens(1, 9)).logits
    assert relative_error(removed, masked) < ROUNDING


def test_no_token_gives_no_output(stock: Path) -> None:
    block = load_torch_model(stock, torch.float32).base_model.layers[0].mlp
    assert block(torch.zeros(0, 5, 64)).shape == (0, 5, 64)


def test_outputs_are_the_same_bits_each_time(stock: Path) -> None:
    model = load_torch_model(stock, torch.float32)
    with torch.no_grad():
        first, second = model(some_tokens(4, 31)).logits, model(some_tokens(4, 31)).logits
    assert torch.equal(first, second)


def test_a_copied_model_uses_its_own_weights(stock: Path) -> None:
    model = load_torch_model(stock, torch.float32)
    twin = copy.deepcopy(model)
    twin.base_model.layers[0].mlp.experts.get_submodule("0").up_proj.weight.zero_()
    tokens = some_tokens(1, 40)
    with torch.no_grad():
        assert not torch.equal(model(tokens).logits, twin(tokens).logits)


def test_parameters_bear_the_names_and_values_of_the_checkpoint(stock: Path) -> None:
    checkpoint = Checkpoint(stock)
    state = load_torch_model(stock, torch.float32).state_dict()
    assert state.keys() == checkpoint.tensors.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, torch.from_numpy(checkpoint.read(name).copy())), name


def test_loaded_model_is_for_evaluation_and_in_the_dtype_asked_for(stock: Path) -> None:
    model = load_torch_model(stock, torch.bfloat16)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert model(some_tokens(1, 5)).logits.dtype == torch.bfloat16


def test_bfloat16_and_float16_arrays_keep_their_values() -> None:
    values = torch.tensor([[1.0, -0.3], [1e-3, 250.0]])
    stored = values.numpy().astype(ml_dtypes.bfloat16)
    assert torch.equal(to_torch(stored), values.bfloat16())
    assert torch.equal(to_torch(values.half().numpy()), values.half())


def test_a_checkpoint_with_an_unknown_tensor_is_refused(stock: Path) -> None:
    shard = stock / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["model.layers.0.mlp.extra.weight"] = np.ones(3, np.float32)
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=r"mlp\.extra\.weight .* is unknown"):
        load_torch_model(stock, torch.float32)


def test_recording_keeps_only_what_is_asked_for_and_ends(stock: Path) -> None:
    model = load_torch_model(stock, torch.float32)
    tokens = some_tokens(2, 8)
    with recording(model, frozenset({"h"})) as made:
        model(tokens)
    assert sorted(made.layers) == [0, 1, 2]
    for traces in made.layers.values():
        assert sum(len(trace.token_N) for trace in traces) == tokens.numel() * 2
        for trace in traces:
            assert trace.values.keys() == {"h"}
            assert trace.values["h"].shape == (len(trace.token_N), 24)
            assert not trace.values["h"].requires_grad
    made.layers.clear()
    model(tokens)
    assert not made.layers


def test_recorded_parts_add_up_to_the_output(stock: Path) -> None:
    model = load_torch_model(stock, torch.float32)
    block = model.base_model.layers[0].mlp
    x_TD = torch.randn(11, 64, generator=torch.Generator().manual_seed(1))
    with recording(block, frozenset({"x", "h", "output"})) as made:
        whole = block(x_TD)
    shared, router = block.shared
    total = torch.sigmoid(router(x_TD)) * shared.forward(x_TD, lambda _, value: value)
    for trace in made.layers[0]:
        assert torch.equal(trace.values["x"], x_TD[trace.token_N])
        weighted = trace.values["output"] * trace.routing_N[:, None]
        total = total.index_add(0, trace.token_N, weighted)
    assert relative_error(total, whole) < 1e-6
