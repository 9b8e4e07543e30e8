"""Tests of `plan.shared_expert: prune` from importance to pruning, with and without a gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.ledger import Ledger
from moe_export.artifacts.plan import Plan
from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError, RecipeError
from moe_export.evaluation.masking import masked
from moe_export.experts import kept_rows
from moe_export.families import check_tensors, open_checkpoint, spec_of
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.fitting.compact import hidden
from moe_export.recipe import ImportanceSettings, PlanSettings, PruneSettings
from moe_export.stages import importance, plan, prune
from moe_export.stages.job import Job
from moe_export.testing.families import DEEPSEEK_V2, MIXTRAL, QWEN2_MOE
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.helpers.torch_models import some_tokens

LIMIT = 1e-4
SCORES = ("fisher_margin", "rounding_margin")
SETTINGS = ImportanceSettings(scores=SCORES, batch_tokens=128, shared_expert=True)


@pytest.fixture(scope="module", params=[QWEN2_MOE, DEEPSEEK_V2], ids=lambda row: row.model_type)
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp(request.param.model_type)
    found = {name: root / name for name in ("model", "calibrate", "importance")}
    tiny_checkpoint(found["model"], base=request.param.config)
    found["calibrate"].mkdir()
    tokens = np.random.default_rng(3).integers(0, 256, 24 * 32).astype(np.int32)
    zeros = np.zeros(24, np.int32)
    offsets = np.arange(25, dtype=np.int64) * 32
    Calibration(tokens, offsets, zeros, zeros).save(found["calibrate"])
    found["importance"].mkdir()
    importance.run(Job(SETTINGS, found["model"], found, found["importance"]))
    return found


def spec_at(folder: Path) -> ModelSpec:
    return spec_of(Checkpoint(folder).config)


def planned(folders: dict[str, Path], out: Path, **settings: Any) -> Plan:
    out.mkdir()
    of = PlanSettings(dtype="float32", **{"shared_expert": "prune"} | settings)
    plan.run(Job(of, folders["model"], folders, out))
    return Plan.load(out)


def pruned(folders: dict[str, Path], of_plan: Path, out: Path, **settings: Any) -> Path:
    out.mkdir()
    made = PruneSettings(**{"refit": False, "distill_blocks": False} | settings)
    prune.run(Job(made, folders["model"], folders | {"plan": of_plan}, out))
    return out


def logits_of(model: Any) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(some_tokens(2, 20)).logits.numpy()
    return logits


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("after", [4, 19, 30])
def test_an_interrupted_stage_goes_on_to_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path, after: int
) -> None:
    def interrupt(done: int, _of: int, _what: str) -> None:
        if done == after:
            raise StopHereError

    (tmp_path / "importance").mkdir()
    job = Job(SETTINGS, folders["model"], folders, tmp_path / "importance")
    with pytest.raises(StopHereError):
        importance.run(replace(job, progress=interrupt))
    importance.run(job)
    name = "importance.safetensors"
    assert (job.out / name).read_bytes() == (folders["importance"] / name).read_bytes()


def test_masked_equals_removed_and_every_reader_takes_the_checkpoint(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    whole = planned(folders, tmp_path / "whole", keep=1.0).export_bytes["float32"].before
    target = int(0.75 * whole.active_bytes_per_token)
    found = planned(folders, tmp_path / "plan", target_active_bytes=target)
    out = pruned(folders, tmp_path / "plan", tmp_path / "out", save_padded=True)
    spec, scores = spec_at(folders["model"]), Importance.load(folders["importance"]).scores
    kept = [
        kept_rows(scores["fisher_margin"][layer], Axis(spec, True).tables[layer], widths)
        for layer, widths in enumerate(found.axis_widths_after)
    ]
    model = load_torch_model(folders["model"], torch.float32)
    before = logits_of(model)
    with masked(model, kept):
        expected = logits_of(model)
    with masked(model, [layer[:6] for layer in kept]):
        assert np.abs(logits_of(model) - expected).max() > 0.01  # the shared expert is in it
    np.testing.assert_array_equal(logits_of(model), before)
    for load in (
        lambda: load_torch_model(out, torch.float32),
        lambda: AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval(),
        lambda: load_torch_model(out / "padded", torch.float32),
        lambda: AutoModelForCausalLM.from_pretrained(out / "padded", dtype=torch.float32).eval(),
    ):
        np.testing.assert_allclose(logits_of(load()), expected, rtol=0, atol=LIMIT)
    tensors = Ledger.load(out).tensors
    for layer, width in enumerate(spec_at(out).shared_widths):
        for role in ("shared_gate", "shared_up", "shared_down") if width is not None else ():
            entry = tensors[spec.name(role, layer)]
            assert entry.action == "sliced"
            assert width in entry.shape_after
    assert sum(entry.bytes for entry in tensors.values()) == found.checkpoint_tensor_bytes


def test_widths_that_the_tensors_do_not_have_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    planned(folders, tmp_path / "plan", keep=0.5)
    out = pruned(folders, tmp_path / "plan", tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    widths = config["shared_expert_widths"]
    assert [width is None for width in widths] == [not row for row in config["expert_widths"]]
    layer = next(number for number, width in enumerate(widths) if width is not None)
    wrong = [*widths[:layer], widths[layer] - 1, *widths[layer + 1 :]]
    with pytest.raises(CheckpointError, match="has shape"):
        check_tensors(Checkpoint(out), spec_of(config | {"shared_expert_widths": wrong}))
    full = max(width or 0 for width in spec_at(folders["model"]).shared_widths)
    for bad in (
        5,
        widths[:-1],
        [0] * 3,
        [None] * 3,
        [*widths[:layer], full + 1, *widths[layer + 1 :]],
    ):
        with pytest.raises(CheckpointError, match="shared_expert_widths"):
            spec_of(config | {"shared_expert_widths": bad})
    (out / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "shared_expert_widths"})
    )
    with pytest.raises(CheckpointError, match=r"shared_expert.* has shape"):
        open_checkpoint(out)


def test_refitted_the_shared_expert_is_the_least_squares_one_beside_the_others(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    found = planned(folders, tmp_path / "plan", keep=0.5, scope="expert")
    plan_of = tmp_path / "plan"
    # Held-out sequences repeat others, since on unseen ones of random weights no fit is better.
    drawn = Calibration.load(folders["calibrate"])
    repeated = replace(drawn, tokens_N=np.tile(drawn.tokens_N[: 3 * 32], 8))
    folders = folders | {"calibrate": tmp_path / "repeated"}
    folders["calibrate"].mkdir()
    repeated.save(folders["calibrate"])
    words = {"refit": {"mix": 0.0, "ridge": 0.1}}
    refit = pruned(folders, plan_of, tmp_path / "refit", **words)
    plain = pruned(folders, plan_of, tmp_path / "plain", refit=False)
    spec = spec_at(folders["model"])
    layer = next(number for number, width in enumerate(spec.shared_widths) if width is not None)
    assert found.axis_widths_after[layer][-1] < (spec.shared_widths[layer] or 0)
    whole, small = (
        next(
            module
            for module in load_torch_model(folder, torch.float32).modules()
            if getattr(module, "layer", None) == layer
        )
        for folder in (folders["model"], refit)
    )
    seen: list[torch.Tensor] = []
    model = load_torch_model(folders["model"], torch.float32)
    block = next(m for m in model.modules() if getattr(m, "layer", None) == layer)
    block.register_forward_pre_hook(lambda _module, args: seen.append(args[0].flatten(0, 1)))
    streams: list[torch.Tensor] = []
    model.base_model.layers[layer].register_forward_hook(
        lambda _module, _args, out: streams.append(torch.atleast_3d(out)[0])
    )
    for number, tokens in enumerate(Calibration.load(folders["calibrate"]).sequences()):
        if number % 8 != 7:  # the others are held out
            model(torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False)
    x_TD = torch.cat(seen)
    # The squared error of a token counts as a share of the unpruned residual stream's square.
    weight_T1 = 1 / (torch.cat(streams).square().mean(-1, keepdim=True) + spec.norm_epsilon)
    missing_TD = (whole(x_TD) - small(x_TD)) * weight_T1
    h_TP = hidden(small.all_experts[-1], x_TD) * small.shared_weight(x_TD)
    name = spec.name("shared_down", layer)
    made, before = (torch.from_numpy(Checkpoint(f).read(name)) for f in (refit, plain))
    pull = 0.1 * (weight_T1 * h_TP.square()).sum(0).mean()
    gradient_DP = missing_TD.T @ h_TP - pull * (made - before)
    # Sums of 672 terms in float32, in another order.
    assert gradient_DP.abs().max() < 1e-4 * (pull * (made - before)).abs().max()
    outcome = Ledger.load(refit).refit
    assert name in outcome.tensors
    assert not [entry for entry in outcome.left if "shared" in entry.tensor]


def test_a_family_without_a_shared_expert_is_refused(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", base=MIXTRAL.config)
    scores = {"fisher_margin": [np.ones(144)] * 3}
    Importance(scores, [np.ones(6, np.int64)] * 3).save(tmp_path)
    folders = dict.fromkeys(("calibrate", "importance"), tmp_path)
    settings = PlanSettings(keep=0.5, shared_expert="prune")
    with pytest.raises(RecipeError, match="this mixtral has no shared expert; leave it out"):
        plan.run(Job(settings, model, folders, tmp_path / "out"))
