"""Tests of the tune stage: what it trains, that it is resumable, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_export.artifacts.stage_mark import StageMark
from moe_export.artifacts.tuning import Tuning
from moe_export.checkpoint import Checkpoint, read_config
from moe_export.cli import main
from moe_export.errors import GateError, RecipeError, ResourceError
from moe_export.families import open_checkpoint, spec_of
from moe_export.families.base import ModelSpec
from moe_export.recipe import TuneSettings
from moe_export.recipe.load import parse_recipe
from moe_export.runner.steps import steps_of
from moe_export.stages import tune
from moe_export.stages.job import Job
from moe_export.testing.families import PHIMOE
from moe_export.testing.synthetic_checkpoint import config_of
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.tuning.needs import needs_of, require_memory
from tests.helpers.small_runs import recipe, write_recipe
from tests.helpers.small_tuning import tune_settings


def settings(method: str = "full", **changes: Any) -> TuneSettings:
    return tune_settings(method, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tune") / "model", dtype="bfloat16")


def tuned(model: Path, out: Path, **changes: Any) -> Tuning:
    out.mkdir()
    (out.parent / f"{out.name}.partial").mkdir(exist_ok=True)
    tune.run(Job(settings(**changes), model, {}, out))
    return Tuning.load(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def roles(spec: ModelSpec, names: tuple[str, ...]) -> set[str]:
    return {spec.tensors[name].role for name in names}


def test_full_tuning_lowers_the_held_out_loss_and_keeps_the_familys_format(
    model: Path, tmp_path: Path
) -> None:
    found = tuned(model, tmp_path / "tune")
    assert found.after < found.before - 0.1
    assert found.after == pytest.approx(np.mean([source.after for source in found.sources]))
    checkpoint, spec = open_checkpoint(tmp_path / "tune")
    assert checkpoint.config == read_config(model)
    assert {info.dtype.name for info in checkpoint.tensors.values()} == {"bfloat16"}
    assert len(found.changed) + found.equal == len(spec.tensors)
    assert {"router", "gate", "down", "shared_up", "embedding", "q"} <= roles(spec, found.changed)
    assert found.steps == len(found.losses) == 6
    assert [source.held_out_documents for source in found.sources] == [3, 3]


def test_two_runs_and_a_killed_one_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    def killed(done: int, of: int, _what: str) -> None:
        if of > 1 and done == 4:
            raise KeyboardInterrupt

    expected = tuned(model, tmp_path / "first")
    (tmp_path / "second").mkdir()
    (tmp_path / "second.partial").mkdir()
    job = Job(settings(), model, {}, tmp_path / "second")
    with pytest.raises(KeyboardInterrupt):
        tune.run(replace(job, progress=killed))
    seen: list[int] = []
    tune.run(replace(job, progress=lambda done, of, _what: seen.append(done)))
    assert seen[0] == 4
    assert contents(tmp_path / "second") == contents(tmp_path / "first")
    assert len(expected.losses) == 6


def test_a_frozen_router_stays_bit_equal(model: Path, tmp_path: Path) -> None:
    found = tuned(model, tmp_path / "tune", method="frozen_router")
    _, spec = open_checkpoint(model)
    assert "router" not in roles(spec, found.changed)
    assert {"gate", "shared_router", "embedding"} <= roles(spec, found.changed)


def test_esft_trains_the_chosen_experts_and_nothing_else(model: Path, tmp_path: Path) -> None:
    found = tuned(model, tmp_path / "tune", method="esft", esft={"share": 0.5})
    _, spec = open_checkpoint(model)
    assert found.experts is not None
    assert all(1 <= len(experts) < spec.num_experts for experts in found.experts)
    expected = {
        spec.name(role, layer, expert)
        for layer, experts in enumerate(found.experts)
        for expert in experts
        for role in ("gate", "up", "down")
    }
    assert set(found.changed) == expected
    before, after = Checkpoint(model), Checkpoint(tmp_path / "tune")
    for name in spec.tensors.keys() - expected:
        assert before.read(name).tobytes() == after.read(name).tobytes()


def test_dense_mixer_trains_and_is_refused_without_a_softmax_over_all_experts(
    model: Path, tmp_path: Path
) -> None:
    found = tuned(model, tmp_path / "tune", method="dense_mixer", steps=2)
    _, spec = open_checkpoint(model)
    assert {"router", "gate"} <= roles(spec, found.changed)
    phimoe = tiny_checkpoint(tmp_path / "phimoe", base=PHIMOE.config)
    with pytest.raises(RecipeError, match=r"dense_mixer gives routers gradients .* phimoe"):
        tuned(phimoe, tmp_path / "refused", method="dense_mixer")


def test_fewer_experts_are_distilled_towards_the_source_with_all(
    model: Path, tmp_path: Path
) -> None:
    found = tuned(
        model, tmp_path / "tune", objective="distill", top_k=1, steps=12, learning_rate=5e-4
    )
    assert found.top_k == 1
    assert read_config(tmp_path / "tune")["num_experts_per_tok"] == 1
    assert 0 < found.after < 0.9 * found.before


def test_a_tuned_model_that_is_no_better_on_held_out_documents_stops_the_run(
    model: Path, tmp_path: Path
) -> None:
    with pytest.raises(GateError, match=r"held-out documents is .* and was .* before; change"):
        tuned(model, tmp_path / "tune", learning_rate=30.0, schedule="constant")


def test_what_a_large_model_would_need_is_told_before_anything_is_done() -> None:
    spec = spec_of(config_of("qwen2_moe", "qwen1.5-moe-a2.7b"))
    with pytest.raises(ResourceError, match=r"method full .* 14,\d+,\d+,\d+ weights .* esft"):
        require_memory(spec, settings(), 64 << 30)
    assert needs_of(spec, settings(method="esft")).trained < needs_of(spec, settings()).trained / 3


def test_a_run_tunes_first_and_all_other_stages_take_the_tuned_model(
    model: Path, tmp_path: Path
) -> None:
    section = settings(steps=3).model_dump(mode="json", exclude_none=True)
    path = write_recipe(tmp_path, model, tune=section)
    run = tmp_path / "run"
    assert main(["run", str(path), "--run", str(run), "--until", "prune"]) == 0
    mark = StageMark.load(run / "prune")
    assert mark.identity.inputs["tune"] == StageMark.load(run / "tune").key
    _, spec = open_checkpoint(run / "tune")
    name = spec.name("q", 0)
    tuned_q = Checkpoint(run / "tune").read(name)
    assert (Checkpoint(run / "prune").read(name) == tuned_q).all()
    assert (Checkpoint(model).read(name) != tuned_q).any()
    assert "# model" in (run / "prune" / "README.md").read_text()


def test_after_pruning_the_pruned_model_recovers_and_is_exported(
    model: Path, tmp_path: Path
) -> None:
    section = settings(steps=8, after="prune")
    plain = section.model_dump(mode="json", exclude_none=True)
    path = write_recipe(tmp_path, model, tune=plain)
    run = tmp_path / "run"
    assert main(["run", str(path), "--run", str(run), "--until", "export"]) == 0
    found = Tuning.load(run / "tune")
    assert found.after < found.before
    assert read_config(run / "tune") == read_config(run / "prune")
    assert "tune" not in StageMark.load(run / "importance").identity.inputs
    inputs = StageMark.load(run / "quantize").identity.inputs
    assert inputs["prune"] == StageMark.load(run / "tune").key
    pruned, recovered = Checkpoint(run / "prune"), Checkpoint(run / "tune")
    assert found.changed
    assert (recovered.read(found.changed[0]) != pruned.read(found.changed[0])).any()


def test_steps_follow_the_place_of_tuning() -> None:
    content = recipe(Path("model"))
    plan = content["plan"] | {"top_k": 1}
    section = {"method": "full", "sources": [{"demo": "sums"}]}
    first = {s.stage: s for s in steps_of(parse_recipe(content | {"tune": section, "plan": plan}))}
    assert next(iter(first)) == "tune"
    assert first["tune"].settings.model_dump()["top_k"] == 1
    assert "tune" in first["validate"].reads
    assert "tune" not in first["quantize"].reads
    later = {
        s.stage: s for s in steps_of(parse_recipe(content | {"tune": section | {"after": "prune"}}))
    }
    assert list(later)[:6] == ["calibrate", "importance", "plan", "prune", "tune", "quantize"]
    assert later["validate"].reads["prune"] == "tune"
    assert later["report"].reads["prune"] == "prune"
    assert later["report"].reads["tune"] == "tune"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "lora"}, "input should be"),
        ({"epochs": 1, "steps": 2}, "epochs or steps"),
        ({"esft": {"share": 0.5}}, "section esft is for method esft"),
        ({"top_k": 1}, "tune.top_k follows plan.top_k"),
    ],
)
def test_a_section_that_cannot_be_carried_out_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    section = {"method": "full", "sources": [{"demo": "sums"}]} | changes
    path = write_recipe(tmp_path, tmp_path, tune=section)
    assert main(["run", str(path), "--run", str(tmp_path / "run")]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())
