from __future__ import annotations

import logging
from pathlib import Path

import pytest

from moe_export.artifacts.plan import Plan
from moe_export.cli import main
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.small_runs import write_recipe

LOGGER = "moe_export.runner.layer_log"


def test_verbose_logs_every_layer_of_every_stage_with_its_sizes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    path = write_recipe(tmp_path, model)
    run = tmp_path / "run"
    command = ["run", str(path), "--run", str(run), "--until", "export"]
    with caplog.at_level(logging.INFO, logger=LOGGER):
        assert main(["-v", *command]) == 0
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    plan = Plan.load(run / "plan")
    layers = [layer.layer for layer in plan.layers]
    for stage in ("importance", "plan", "prune", "quantize"):
        mine = [line for line in lines if line.startswith(f"{stage}, ")]
        assert [line.split(":")[0] for line in mine] == [f"{stage}, layer {n}" for n in layers]
    for layer in plan.layers:
        rows = f"{layer.rows_after} of {layer.rows_before} rows"
        size = layer.expert_bytes["float32"]
        assert f"plan, layer {layer.layer}: {rows}, {size} bytes in float32" in "\n".join(lines)
        assert f"export, pruned, layer {layer.layer}: {size} bytes of experts" in lines
    stored = sum(
        int(line.split(", ")[-1].removesuffix(" bytes")) for line in lines if "prune, l" in line
    )
    assert 0.5 * plan.checkpoint_tensor_bytes < stored < plan.checkpoint_tensor_bytes
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        assert main([*command, "--from", "plan"]) == 0
    assert not [record for record in caplog.records if record.name == LOGGER]
