"""Tests of `plan.top_k`: fewer experts per token in torch, in transformers and in ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moe_export.checkpoint import read_config, write_json
from moe_export.errors import RecipeError
from moe_export.families import open_checkpoint
from moe_export.torch_model import load_torch_model
from moe_export.torch_model.routing import sparse_mixer
from tests.family.conftest import Subject, stock_model
from tests.helpers.decoding import Decoder, exported

LIMIT = 1e-4
IDS = np.random.default_rng(6).integers(0, 256, (2, 12))


def logits_of(model: Any) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(IDS)).logits.numpy()
    return logits


def with_one_expert(source: Path, out: Path) -> Path:
    """Copy of a checkpoint whose config says one expert per token."""
    if not out.exists():
        shutil.copytree(source, out)
        write_json(out / "config.json", read_config(out) | {"num_experts_per_tok": 1})
    return out


def test_one_expert_per_token_masked_equals_removed_and_exported(subject: Subject) -> None:
    masked = logits_of(load_torch_model(subject.masked, torch.float32, top_k=1))
    pruned = with_one_expert(subject.pruned, subject.folder / "pruned-top-1")
    removed = logits_of(load_torch_model(pruned, torch.float32))
    np.testing.assert_allclose(removed, masked, rtol=0, atol=LIMIT)
    decoder = Decoder(exported(pruned, subject.folder / "onnx-top-1"))
    np.testing.assert_allclose(decoder.start(IDS), masked, rtol=0, atol=LIMIT)
    whole = logits_of(load_torch_model(subject.masked, torch.float32))
    assert np.abs(whole - masked).max() > 100 * LIMIT


def test_transformers_computes_the_same_with_one_expert_per_token(subject: Subject) -> None:
    stock = stock_model(with_one_expert(subject.source, subject.folder / "source-top-1"))
    # The router of Phi-MoE in transformers always takes two; so the padded twin is refused.
    top_k = 2 if subject.row.model_type == "phimoe" else 1
    ours = load_torch_model(subject.source, torch.float32, top_k=top_k)
    np.testing.assert_allclose(logits_of(ours), logits_of(stock), rtol=0, atol=LIMIT)


def test_the_sparse_mixer_gives_its_first_expert_the_same_weight_alone() -> None:
    logits_TE = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    weight_T2, expert_T2 = sparse_mixer(logits_TE, 0.01)
    weight_T1, expert_T1 = sparse_mixer(logits_TE, 0.01, top_k=1)
    torch.testing.assert_close(weight_T1, weight_T2[:, :1], rtol=0, atol=0)
    assert torch.equal(expert_T1, expert_T2[:, :1])


def test_more_experts_than_the_model_chooses_are_refused(subject: Subject) -> None:
    top_k = json.loads((subject.source / "config.json").read_text())["num_experts_per_tok"]
    with pytest.raises(RecipeError, match=rf"top_k is {top_k + 1}.*give 1 to {top_k}"):
        open_checkpoint(subject.source, top_k + 1)
