"""Tests of the language model within a checkpoint of a model that also sees."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_export.checkpoint import read_config
from moe_export.families import open_checkpoint
from moe_export.families.ignored import AHEAD_REASON, VISION_REASON
from moe_export.testing.families import QWEN3_5_MOE_TEXT
from moe_export.torch_model import load_torch_model
from tests.family.conftest import transformers
from tests.helpers.torch_models import ROUNDING, relative_error, some_tokens

VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}

pytest.importorskip("transformers", minversion="5.0")


@pytest.fixture(scope="module")
def whole() -> Any:
    """A random model of transformers that sees and writes."""
    text = {k: v for k, v in QWEN3_5_MOE_TEXT.config.items() if k != "architectures"}
    config = transformers.Qwen3_5MoeConfig(text_config=text, vision_config=VISION)
    torch.manual_seed(0)
    return transformers.Qwen3_5MoeForConditionalGeneration(config).eval()


@pytest.mark.parametrize("original", [True, False], ids=["published", "fused"])
def test_the_language_model_is_read_and_the_rest_is_dropped_and_told(
    whole: Any, tmp_path: Path, original: bool
) -> None:
    whole.save_pretrained(tmp_path, save_original_format=original)
    shard = tmp_path / "model.safetensors"
    save_file(load_file(shard) | {"mtp.fc.weight": torch.ones(2, 2)}, shard)
    assert "text_config" in json.loads((tmp_path / "config.json").read_text())
    assert read_config(tmp_path)["model_type"] == "qwen3_5_moe_text"
    checkpoint, spec = open_checkpoint(tmp_path)
    reasons = Counter(checkpoint.dropped.values())
    visual = sum(name.startswith("model.visual.") for name in whole.state_dict())
    assert reasons == {VISION_REASON: visual, AHEAD_REASON: 1}
    assert spec.mixers == ("delta_net", "attention", "delta_net")
    tokens = some_tokens(2, 20)
    with torch.no_grad():
        expected = whole(tokens).logits
        actual = load_torch_model(tmp_path, torch.float32)(tokens).logits
    assert relative_error(actual, expected) < ROUNDING
