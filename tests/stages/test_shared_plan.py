"""Tests of plans that prune the shared expert, with invented importance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_export.artifacts.exchange import Exchange, Measured
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.plan import Plan
from moe_export.checkpoint import Checkpoint
from moe_export.errors import PlanError
from moe_export.families import spec_of
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.graph import predicted_bytes
from moe_export.quantization import Quantization
from moe_export.recipe import Formats, PlanSettings
from moe_export.stages.job import Job
from moe_export.stages.plan import run
from moe_export.testing.families import DEEPSEEK_V2, QWEN2_MOE
from moe_export.testing.tiny import tiny_checkpoint


@pytest.fixture(scope="module", params=[QWEN2_MOE, DEEPSEEK_V2], ids=lambda row: row.model_type)
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp(request.param.model_type)
    found = {name: root / name for name in ("model", "importance")}
    tiny_checkpoint(found["model"], base=request.param.config)
    spec, random = spec_at(found["model"]), np.random.default_rng(5)
    scores = [random.lognormal(0, 2, table.rows) for table in Axis(spec, True).tables]
    importance_of(found["importance"], spec, scores)
    return found


def spec_at(folder: Path) -> ModelSpec:
    return spec_of(Checkpoint(folder).config)


def importance_of(folder: Path, spec: ModelSpec, scores: list[Any]) -> Path:
    folder.mkdir()
    tokens = [np.full(len(widths), 100) for widths in spec.widths]
    named = dict.fromkeys(("fisher_margin", "rounding_margin"), scores)
    Importance(named, tokens).save(folder)
    # Rounding costs what its score says.
    one = Measured(predicted=1.0, kl_nats=1.0)
    Exchange(
        rounded=(one,) * spec.num_layers,
        all_rounded=one,
        dropped=(one,),
        tokens=1,
        format="int4",
        group_size=32,
    ).save(folder)
    return folder


def planned(folders: dict[str, Path], out: Path, **settings: Any) -> Plan:
    out.mkdir()
    plan = PlanSettings(dtype="float32", **{"shared_expert": "prune"} | settings)
    run(Job(plan, folders["model"], folders, out))
    return Plan.load(out)


def halfway(spec: ModelSpec, key: str) -> int:
    """Bytes halfway between removing none and all of the prunable dimensions."""
    axis = Axis(spec, True)
    ends = []
    for model in (axis.emptied().spec, spec):
        found = predicted_bytes(model, "float32")
        shares = [np.full(len(layer), 1 / 3) for layer in spec.widths]
        ends.append(
            found.total_bytes if key == "target_bytes" else found.active_bytes(model, shares)
        )
    return sum(ends) // 2


@pytest.mark.parametrize(
    ("budget", "experts"),
    [
        ("keep", "float"),
        ("target_bytes", "int4"),
        ("target_bytes", "auto"),
        ("target_active_bytes", "float"),
        ("target_active_bytes", "auto"),
    ],
)
def test_every_budget_is_kept_with_a_width_of_its_own_for_every_layer(
    folders: dict[str, Path], tmp_path: Path, budget: str, experts: str
) -> None:
    spec = spec_at(folders["model"])
    formats = {} if experts == "float" else {"formats": Formats(experts=experts)}
    whole = replace(spec, quantization=Quantization("float" if experts == "float" else "int4"))
    limit = 0.5 if budget == "keep" else halfway(whole, budget)
    found = planned(folders, tmp_path / "plan", **{budget: limit}, **formats)
    widths = found.axis_widths_after
    shared = [layer[-1] for layer in widths if layer]
    full = max(width or 0 for width in spec.shared_widths)
    assert all(0 <= width <= full for width in shared)
    assert any(0 < width < full for width in shared)
    assert found.rows_after == sum(map(sum, widths))
    assert found.rows_before == 2 * (6 * 24 + full)
    sizes = found.export_bytes["float32"]
    last = sizes.after if experts == "float" else sizes.quantized
    if budget == "keep":
        assert found.kept == 0.5
    elif budget == "target_bytes":
        assert 0.98 * limit < last.total_bytes <= limit
    else:
        assert 0.98 * limit < last.active_bytes_per_token <= limit


def test_a_speedup_is_kept_in_the_same_formats_and_includes_the_shared_expert(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    assert PlanSettings(speedup=1.1).shared_expert == "auto"
    assert PlanSettings(speedup=1.1, shared_expert="keep").shared_expert == "keep"
    assert PlanSettings(speedup=1.1, score="router_frequency").shared_expert == "keep"
    int8 = Formats(experts="int8")
    found = planned(folders, tmp_path / "plan", shared_expert="auto", speedup=1.1, formats=int8)
    assert found.prunes_shared
    sizes = found.export_bytes["float32"]
    read = [model.active_bytes_per_token for model in (sizes.before_quantized, sizes.quantized)]
    assert 1.1 <= read[0] / read[1] < 1.12


def test_at_equal_importance_the_expert_that_every_token_reads_goes_first(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    spec = spec_at(folders["model"])
    equal = [np.ones(table.rows) for table in Axis(spec, True).tables]
    of = folders | {"importance": importance_of(tmp_path / "importance", spec, equal)}
    whole = planned(of, tmp_path / "whole", keep=1.0).export_bytes["float32"].before
    target = int(0.9 * whole.active_bytes_per_token)
    found = planned(of, tmp_path / "plan", target_active_bytes=target)
    assert all(set(layer.widths) <= {24} for layer in found.layers)
    assert any(layer.shared_width == 0 for layer in found.layers)
    floor = planned(of, tmp_path / "floor", target_active_bytes=target, min_width=3)
    assert min(layer.shared_width for layer in floor.layers if layer.widths) == 3


def test_importance_of_other_dimensions_than_are_ranked_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=r"importance is known of .* run from the importance stage"):
        planned(folders, tmp_path / "plan", keep=0.5, shared_expert="keep")
