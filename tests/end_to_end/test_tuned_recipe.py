"""Tests of recipes with compressed experts and with condensers, from tuning to the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_export.artifacts.importance import Importance
from moe_export.artifacts.plan import Plan
from moe_export.checkpoint import read_config
from moe_export.cli import main
from moe_export.families import open_checkpoint
from moe_export.reporting.build_plan import model_facts
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.helpers.decoding import Decoder
from tests.helpers.small_runs import write_recipe

IDS = np.random.default_rng(6).integers(0, 256, (2, 40))
TUNE: dict[str, Any] = {
    "sources": [{"demo": "sums"}, {"demo": "strings"}],
    "documents": 60,
    "steps": 3,
    "sequence_length": 64,
    "batch_tokens": 128,
    "learning_rate": 3e-3,
}


@pytest.mark.parametrize(
    ("method", "section", "active"),
    [
        ("compressed_experts", {"compressed": {"form": "tied"}}, 2),
        ("condenser", {"condenser": {"count": 1, "budget": "kept"}}, 4),
    ],
)
def test_tuned_pruned_and_quantized_models_equal_torch_and_say_what_they_compute(
    method: str, section: dict[str, Any], active: int, tmp_path: Path
) -> None:
    model = tiny_checkpoint(tmp_path / "model", num_experts_per_tok=4, dtype="bfloat16")
    recipe = write_recipe(
        tmp_path,
        model,
        tune=TUNE | {"method": method} | section,
        importance={"scores": ["fisher_margin"]},
    )
    run = tmp_path / "run"
    assert main(["run", str(recipe), "--run", str(run), "--until", "export"]) == 0
    _, spec = open_checkpoint(run / "quantize")
    assert (spec.compressed is None) == (method == "condenser")
    assert (spec.condensers is None) == (method == "compressed_experts")
    assert read_config(run / "export" / "quantized")["model_type"] == "qwen2_moe"
    logits = {}
    for variant, checkpoint in (("pruned", "prune"), ("quantized", "quantize")):
        decoder = Decoder(run / "export" / variant, native=True)
        with torch.no_grad():
            of_torch = load_torch_model(run / checkpoint, torch.float32)(torch.from_numpy(IDS))
        logits[variant] = decoder.start(IDS), of_torch.logits.numpy()
    np.testing.assert_allclose(*logits["pruned"], rtol=0, atol=1e-4)
    ours, of_torch = (each.argmax(-1) for each in logits["quantized"])
    assert (ours == of_torch).mean() > 0.95
    plan, importance = Plan.load(run / "plan"), Importance.load(run / "importance")
    facts = model_facts(run / "prune", plan, importance)
    assert facts.experts_per_token == facts.experts_per_token_before == active
