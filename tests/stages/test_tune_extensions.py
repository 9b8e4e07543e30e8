"""Tests of the tune stage with the methods that add vectors, biases and condensers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_export.artifacts.tuning import Tuning
from moe_export.checkpoint import Checkpoint, read_config
from moe_export.errors import RecipeError
from moe_export.families import open_checkpoint, spec_of
from moe_export.recipe import TuneSettings
from moe_export.stages import tune
from moe_export.stages.job import Job
from moe_export.testing.families import ROWS
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from moe_export.tuning.methods import check_method
from moe_export.tuning.needs import needs_of
from tests.helpers.small_tuning import tune_settings

METHODS = ("compressed_experts", "condenser")


def settings(method: str = "compressed_experts", **changes: Any) -> TuneSettings:
    return tune_settings(method, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "model"
    return tiny_checkpoint(folder, dtype="bfloat16", num_experts_per_tok=4)


def job_of(model: Path, out: Path, of: TuneSettings) -> Job[TuneSettings]:
    out.mkdir()
    (out.parent / f"{out.name}.partial").mkdir(exist_ok=True)
    return Job(of, model, {}, out)


def tuned(model: Path, out: Path, of: TuneSettings) -> Tuning:
    tune.run(job_of(model, out, of))
    return Tuning.load(out)


@pytest.mark.parametrize("form", ["input", "tied", "three"])
def test_vectors_are_trained_at_their_own_rate_in_float32(
    form: str, model: Path, tmp_path: Path
) -> None:
    rule = {"form": form, "vector_rate": 5.0}
    found = tuned(model, tmp_path / "tune", settings(compressed=rule, weight_decay=1.0))
    checkpoint, spec = open_checkpoint(tmp_path / "tune")
    assert spec.compressed is not None
    assert (spec.compressed.auxiliary, spec.compressed.form) == (2, form)
    assert found.active_experts == spec.active_experts == 2
    assert read_config(tmp_path / "tune")["model_type"] == "moe_export_qwen2_moe"
    added = [name for name in spec.tensors if ".compressed." in name]
    assert len(added) == 3 * {"input": 1, "tied": 2, "three": 3}[form]
    assert set(added) < set(found.changed)
    assert {checkpoint.tensors[name].dtype.name for name in added} == {"float32"}
    movement = {
        role: np.mean(
            [np.abs(checkpoint.read(n) - 1).mean() for n in added if n.endswith(f".{role}")]
        )
        for role in ("input", "hidden", "up")
        if any(n.endswith(f".{role}") for n in added)
    }
    assert found.vectors is not None
    account = found.vectors.model_dump()
    assert account == pytest.approx(movement, rel=1e-5)
    # A rate of 3e-3 would move them by 0.006 on the average, and a decay by 0.05.
    assert 0.02 < account["input"] < 0.04
    assert found.after < found.before


def test_a_condenser_run_writes_biases_experts_and_their_account(
    model: Path, tmp_path: Path
) -> None:
    rule = {"count": 1, "bias_reach": 0.3, "phases": (0.5, 0.5)}
    found = tuned(model, tmp_path / "tune", settings("condenser", condenser=rule))
    checkpoint, spec = open_checkpoint(tmp_path / "tune")
    assert spec.condensers is not None
    assert found.active_experts == spec.active_experts == 5
    assert found.routers is not None
    assert [router.layer for router in found.routers] == [0, 1, 2]
    for router in found.routers:
        bias_E = checkpoint.read(spec.name("router_bias", router.layer))
        assert router.largest_bias == pytest.approx(float(np.abs(bias_E).max()))
        assert 0 < router.largest_bias <= 0.3 + 1e-6
        assert spec.condensers.experts[router.layer] == router.condensers
        (condenser,) = router.condensers
        assert router.load_after[condenser] == 1.0
        assert sum(router.load_before) == pytest.approx(4.0)
        assert 0 < router.probabilities[0] < 1
    config = read_config(tmp_path / "tune")
    assert config["condenser_experts"] == [list(r.condensers) for r in found.routers]
    assert {spec.name("router_bias", layer) for layer in range(3)} <= set(found.changed)


def test_kept_budget_and_the_bias_alone(model: Path, tmp_path: Path) -> None:
    kept = {"budget": "kept", "bias_in_weights": False}
    found = tuned(model, tmp_path / "kept", settings("condenser", condenser=kept))
    assert found.active_experts == 4
    bias = tuned(model, tmp_path / "bias", settings("condenser", condenser={"count": 0}))
    assert bias.active_experts == 4
    assert bias.routers is not None
    assert {router.condensers for router in bias.routers} == {()}
    assert read_config(tmp_path / "kept")["router_bias_in_weights"] is False


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_and_a_second_one_give_the_same_bytes(
    method: str, model: Path, tmp_path: Path
) -> None:
    def killed(done: int, of: int, _what: str) -> None:
        if of > 1 and done == 4:
            raise KeyboardInterrupt

    tuned(model, tmp_path / "first", settings(method))
    job = job_of(model, tmp_path / "second", settings(method))
    with pytest.raises(KeyboardInterrupt):
        tune.run(replace(job, progress=killed))
    tune.run(job)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("first", "second")
    )
    assert first == second


def test_distilling_trains_vectors_towards_the_source_with_all_experts(
    model: Path, tmp_path: Path
) -> None:
    of = settings(objective="distill", steps=12, learning_rate=1e-4)
    found = tuned(model, tmp_path / "tune", of)
    assert found.top_k == 4
    assert 0 < found.after < found.before


@pytest.mark.parametrize(
    ("method", "experts"),
    [
        ("compressed_experts", "2, and the vectors of 2 more"),
        ("condenser", "4, and 2 that every token gets"),
    ],
)
def test_stock_transformers_refuses_by_name(
    method: str, experts: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(model, tmp_path / "tune", settings(method, steps=1))
    with monkeypatch.context() as stock:
        stock.setattr(CONFIG_MAPPING, "_extra_content", {})  # as without moe_export
        with pytest.raises(ValueError, match="moe_export_qwen2_moe"):
            AutoConfig.from_pretrained(tmp_path / "tune")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert load_torch_model(tmp_path / "tune", torch.float32)(ids).logits.isfinite().all()
    card = (tmp_path / "tune" / "README.md").read_text()
    assert f"| experts per token | {experts} |" in card
    assert "import moe_export" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressed": {"auxiliary": 4}}, r"auxiliary is 4 of the 4 .*; expected 1 to 3"),
        ({"top_k": 1}, r"auxiliary is half of the 1 experts per token"),
        (
            {"method": "condenser", "condenser": {"count": 4, "budget": "kept"}},
            r"count is 4 with the budget kept, .* 4 experts per token; expected 3 at most",
        ),
        (
            {"method": "condenser", "condenser": {"count": 6}},
            r"count is 6 with the budget added, .* 6 experts of a layer; expected 5 at most",
        ),
    ],
)
def test_numbers_that_leave_nothing_are_refused(
    changes: dict[str, Any], message: str, model: Path
) -> None:
    of = settings(**changes)
    spec = replace(spec_of(read_config(model)), top_k=of.top_k or 4)
    with pytest.raises(RecipeError, match=message):
        check_method(spec, of)


@pytest.mark.parametrize("method", METHODS)
def test_families_and_models_that_cannot_are_refused_by_name(
    method: str, model: Path, tmp_path: Path
) -> None:
    sigmoid = next(row.config for row in ROWS if row.model_type == "deepseek_v3")
    with pytest.raises(RecipeError, match=rf"tune.method is {method}, but .* deepseek_v3"):
        check_method(spec_of(sigmoid), settings(method))
    again = tiny_checkpoint(
        tmp_path / "again",
        model_type="moe_export_qwen2_moe",
        compressed_experts=1,
        compressed_form="tied",
    )
    with pytest.raises(RecipeError, match="was tuned with compressed experts or a router bias"):
        check_method(spec_of(Checkpoint(again).config), settings(method))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": "prune"}, "after: prune is for methods that change weights alone"),
        ({"condenser": {}}, "the section condenser is for method condenser"),
        ({"method": "full", "compressed": {}}, "compressed is for method compressed_experts"),
        (
            {"method": "condenser", "condenser": {"phases": (0.5, 0.4)}},
            re.escape("phases are [0.5, 0.4], which sum to 0.9; expected 1"),
        ),
    ],
)
def test_sections_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


def test_needs_count_the_vectors(model: Path) -> None:
    spec = spec_of(json.loads((model / "config.json").read_text()))
    plain, vectors = needs_of(spec, settings("full")), needs_of(spec, settings())
    assert vectors.trained - plain.trained == 3 * 6 * (64 + 24)
    condensers = needs_of(spec, settings("condenser"))
    assert condensers.trained == plain.trained
    assert condensers.flops > plain.flops > vectors.flops
