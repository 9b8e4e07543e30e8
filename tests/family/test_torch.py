"""Tests of the families' models in torch against those of stock transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_export.checkpoint import Checkpoint
from moe_export.families import spec_of
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import RaggedMoEBlock, load_torch_model
from tests.family.conftest import Subject, stock_model
from tests.helpers.torch_models import ROUNDING, relative_error, some_tokens

VARIANTS = [
    pytest.param(row, variant, id=f"{row.model_type}-{variant}")
    for row in ROWS
    for variant in row.variants
]


def test_each_block_equals_the_stock_block(subject: Subject) -> None:
    x_BLD = torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(1))
    ours, module = load_torch_model(subject.source, torch.float32), spec_of(subject.row.config)
    name = module.family.moe_module
    checked = 0
    for mine, stock in zip(ours.base_model.layers, subject.stock.model.layers, strict=True):
        block = mine.get_submodule(name)
        if not isinstance(block, RaggedMoEBlock):
            continue
        stock_block = stock.get_submodule(name) if hasattr(stock, name) else stock.mlp
        actual, expected = block(x_BLD), stock_block(x_BLD)
        if isinstance(expected, tuple):  # with the router's logits
            expected = expected[0]
        if isinstance(actual, tuple):
            actual = actual[0]
        assert relative_error(actual, expected.detach()) < 2e-6
        checked += 1
    assert checked == 3 - len(subject.row.dense_layers)


def test_logits_equal_the_stock_model(subject: Subject) -> None:
    tokens = some_tokens(2, 20)
    with torch.no_grad():
        expected = subject.stock(tokens).logits
        actual = load_torch_model(subject.source, torch.float32)(tokens).logits
    assert relative_error(actual, expected) < ROUNDING


@pytest.mark.parametrize(("row", "variant"), VARIANTS)
def test_logits_of_a_variant_equal_the_stock_model(
    row: FamilyRow, variant: dict[str, Any], tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path / "source", base=row.config, **variant)
    tokens = some_tokens(2, 20)
    with torch.no_grad():
        expected = stock_model(source)(tokens).logits
        actual = load_torch_model(source, torch.float32)(tokens).logits
    assert relative_error(actual, expected) < ROUNDING


def test_masked_dimensions_equal_removed_ones_in_stock_transformers(subject: Subject) -> None:
    tokens = some_tokens(2, 20)
    with torch.no_grad():
        masked = stock_model(subject.masked)(tokens).logits
        whole = subject.stock(tokens).logits
        auto = AutoModelForCausalLM.from_pretrained(subject.pruned, dtype=torch.float32).eval()
        removed = auto(tokens).logits
        ours = load_torch_model(subject.pruned, torch.float32)(tokens).logits
    assert type(auto).__name__.startswith("Ragged")
    assert relative_error(removed, masked) < ROUNDING
    assert relative_error(ours, masked) < ROUNDING
    assert float((masked - whole).abs().max()) > 0.1  # the removed dimensions had an effect


def test_a_config_of_transformers_5_is_understood_by_either_version(
    subject: Subject, tmp_path: Path
) -> None:
    shutil.copytree(subject.pruned, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    if subject.row.model_type == "qwen3_moe":
        config["num_local_experts"] = config.pop("num_experts")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert spec_of(config) == spec_of(Checkpoint(subject.pruned).config)
    tokens = some_tokens(2, 20)
    with torch.no_grad():
        expected = load_torch_model(subject.pruned, torch.float32)(tokens).logits
        auto = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        assert relative_error(auto(tokens).logits, expected) < ROUNDING


def test_a_pruned_model_saves_and_generates(subject: Subject, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(subject.pruned, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    before, after = Checkpoint(subject.pruned), Checkpoint(tmp_path)
    assert after.tensors.keys() == before.tensors.keys()
    assert spec_of(after.config) == spec_of(before.config)
    again = load_torch_model(tmp_path, torch.float32)
    prompt = some_tokens(2, 6)
    made = [
        each.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            use_cache=use_cache,
        )
        for each, use_cache in ((model, True), (again, False))
    ]
    assert torch.equal(*made)
