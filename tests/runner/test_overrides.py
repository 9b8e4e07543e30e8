"""Tests of `model.overrides`: a source whose config has other values for a few keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_export.checkpoint import Checkpoint, read_config
from moe_export.cli import main
from moe_export.errors import CheckpointError
from moe_export.families import open_checkpoint
from moe_export.families.overrides import OVERRIDES_KEY
from moe_export.graph import predicted_bytes
from moe_export.recipe import ModelOverrides, ModelSettings
from moe_export.reporting.card_source import source_of
from moe_export.runner.source_model import locate
from moe_export.testing.families import LONGROPE, PHIMOE
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.small_runs import write_recipe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_EXPORT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint that is refused as it is: longrope beyond its original positions."""
    short = tiny_checkpoint(tmp_path / "phi", base=PHIMOE.config, rope_scaling=LONGROPE)
    config = json.loads((short / "config.json").read_text()) | {"max_position_embeddings": 256}
    (short / "config.json").write_text(json.dumps(config))
    return short


def located(source: Path, **keys: int) -> Path:
    return locate(ModelSettings(source=str(source), overrides=ModelOverrides(**keys)))


def test_a_view_has_the_weights_of_the_source_and_the_values_of_the_recipe(source: Path) -> None:
    assert located(source) == source
    with pytest.raises(CheckpointError, match="max_position_embeddings"):
        open_checkpoint(source)
    view = located(source, max_position_embeddings=64)
    checkpoint, spec = open_checkpoint(view)
    assert spec.max_positions == 64
    assert checkpoint.config[OVERRIDES_KEY] == {"max_position_embeddings": 256}
    name = spec.name("embedding")
    assert (checkpoint.read(name) == Checkpoint(source).read(name)).all()
    assert source_of(view) == source_of(source)
    assert located(source, max_position_embeddings=64) == view
    assert located(source, max_position_embeddings=32) != view
    # The rotary tables have the length that is used.
    tables = predicted_bytes(spec, "float32").by_class["constants"]
    shorter = open_checkpoint(located(source, max_position_embeddings=32))[1]
    assert tables - predicted_bytes(shorter, "float32").by_class["constants"] == 2 * 32 * 8 * 4


def test_every_artifact_of_a_run_has_the_published_values(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = write_recipe(
        tmp_path,
        source,
        model={"source": str(source), "overrides": {"max_position_embeddings": 128}},
        importance={"scores": ["magnitude"]},
        plan={"keep": 0.5, "score": "magnitude"},
        prune={"refit": False, "distill_blocks": False},
        export={"baseline": True, "pruned": True},
        quantize=None,
    )
    run = tmp_path / "run"
    assert main(["run", str(recipe), "--run", str(run), "--until", "export"]) == 0
    assert "max_position_embeddings is 128, published 256" in caplog.text
    for folder in ("prune", "export/baseline", "export/pruned"):
        config = read_config(run / folder)
        assert config["max_position_embeddings"] == 128, folder
        assert config[OVERRIDES_KEY] == {"max_position_embeddings": 256}, folder
    changed = "model.overrides.max_position_embeddings=64"
    main(["status", str(recipe), "--run", str(run), "--set", changed])
    assert "checkpoint has changed" in capsys.readouterr().out
