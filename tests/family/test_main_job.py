"""Test of all stages on a model whose first layer has no experts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moe_export.artifacts.importance import Importance
from moe_export.artifacts.plan import Plan
from moe_export.checkpoint import read_config
from moe_export.cli import main
from moe_export.families import spec_of
from moe_export.ort.session import OrtModel
from moe_export.testing.families import (
    DEEPSEEK_V2,
    GLM4_MOE_LITE,
    LFM2_MOE,
    MIXTRAL,
    QWEN3_5_MOE_TEXT,
    FamilyRow,
)
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.small_runs import write_recipe
from tools.trust.families import twin_error

ROWS = (
    DEEPSEEK_V2,
    GLM4_MOE_LITE,
    LFM2_MOE,
    MIXTRAL,
    QWEN3_5_MOE_TEXT,
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model_type)
def test_the_main_job_runs_and_its_report_names_layers_with_experts(
    row: FamilyRow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_checkpoint(tmp_path / "model", base=row.config)
    recipe = write_recipe(
        tmp_path,
        model,
        importance={"scores": ["fisher_margin", "magnitude"]},
        prune={"save_padded": True},
        quantize={"experts": "int4", "dense": "int8"},
    )
    run = tmp_path / "run"
    assert main(["run", str(recipe), "--run", str(run), "--until", "export"]) == 0
    importance = Importance.load(run / "importance")
    plan, spec = Plan.load(run / "plan"), spec_of(row.config)
    for layer, scores_R in enumerate(importance.scores["fisher_margin"]):
        dense = layer in row.dense_layers
        assert (scores_R.size == 0) == dense
        assert (plan.layers[layer].widths == ()) == dense
        reached_R = np.repeat(importance.tokens_per_expert[layer] > 0, spec.widths[layer])
        assert np.isfinite(scores_R[reached_R]).all()
    main(["run", str(recipe), "--run", str(run)])  # gates are for trained models
    validation = json.loads((run / "validate" / "validation.json").read_text())
    parity = validation["providers"]["cpu"]["parity"]["pruned"]
    assert parity["max_logit_error"] <= 1e-4
    assert twin_error(run / "prune") < 1e-5
    ties = [
        spec_of(read_config(run / folder)).tied_embeddings
        for folder in ("prune", "export/pruned", "quantize", "export/quantized")
    ]
    assert ties == [spec.tied_embeddings] * 2 + [False] * 2
    report = json.loads((run / "report" / "report.json").read_text())
    shown = [layer["layer"] for layer in report["plan"]["layers"]]
    assert shown == [layer for layer in range(3) if layer not in row.dense_layers]
    cache = report["memory"]["kv_cache"]
    exported = OrtModel(run / "export" / "pruned")
    for at in cache["lengths"]:
        assert exported.cache_bytes(1, at["tokens"]) == at["cache_bytes"]
        every_head = at["every_head_bytes"]
        assert (every_head is not None) == ("latent_attention" in spec.mixers)
        assert every_head is None or every_head > 2 * at["cache_bytes"]
    assert (cache["fixed_bytes"] > 0) == bool({"short_convolution", "delta_net"} & {*spec.mixers})
    assert report["model"]["active_parameters_per_token"]["before"] is not None
    capsys.readouterr()
    main(["plan", str(recipe), "--run", str(run)])
    assert "rows kept" in capsys.readouterr().out
