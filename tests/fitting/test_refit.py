"""Tests of refitting `down`: the formula by hand, and the prune stage with it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_export.artifacts.ledger import Ledger, Refit
from moe_export.checkpoint import Checkpoint, overwrite
from moe_export.errors import CheckpointError
from moe_export.families import spec_of
from moe_export.fitting import refit
from moe_export.fitting.block_data import BlockData
from moe_export.fitting.compact import compact_block, hidden
from moe_export.fitting.fit_block import FitRule
from moe_export.fitting.fit_layers import PRUNED, LayerFits, begun
from moe_export.fitting.fit_tokens import FitTokens
from moe_export.passes.layers import INPUT
from moe_export.torch_model import load_torch_model
from moe_export.torch_model.block import RaggedMoEBlock
from tests.fitting.pruned_runs import planned, pruned

RIDGE = 0.01


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return planned(tmp_path_factory.mktemp("refit"))


@pytest.fixture
def block(folders: dict[str, Path]) -> RaggedMoEBlock:
    """Block of six experts, none of them shared, with 0 to 5 kept dimensions each."""
    whole = next(
        module
        for module in load_torch_model(folders["model"], torch.float32).modules()
        if isinstance(module, RaggedMoEBlock)
    )
    widths = (5, 4, 0, 3, 2, 5)
    kept = {(0, expert): np.arange(width) for expert, width in enumerate(widths)}
    resized = replace(whole.spec, widths=(widths, *whole.spec.widths[1:]))
    small = compact_block(whole, resized, kept)
    small.shared = None
    return small


@pytest.mark.parametrize("at_once", [19, 18])
def test_experts_at_once_or_in_many_sweeps_are_the_weighted_least_squares_solution(
    block: RaggedMoEBlock, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    # The experts keep 19 dimensions.
    monkeypatch.setattr(refit, "DIMENSIONS_AT_ONCE", at_once)
    monkeypatch.setattr(refit, "SWEEPS", 200 if at_once < 19 else 0)
    monkeypatch.setattr(refit, "TOKENS_AT_ONCE", 70)
    x_TD, wanted_TD = torch.randn(2, 300, 64, generator=torch.Generator().manual_seed(0))
    weight_T = torch.linspace(0.1, 2, 300)
    before = torch.cat([expert.down.weight for expert in block.routed], dim=1).double()
    columns = []
    for expert in refit.tokens_by_expert(block, x_TD):
        h_TP = torch.zeros(300, expert.swiglu.down.weight.shape[1])
        h_TP[expert.token_N] = hidden(expert.swiglu, x_TD[expert.token_N])
        h_TP[expert.token_N] *= expert.routing_N[:, None]
        columns.append((h_TP * weight_T.sqrt()[:, None]).double())
    pull = torch.cat(
        [RIDGE * h_TP.square().sum(0).mean().expand(h_TP.shape[1]) for h_TP in columns]
    )
    design_TR = torch.cat(columns, dim=1)
    goal_TD = (wanted_TD * weight_T.sqrt()[:, None]).double()
    expected_RD = torch.linalg.solve(
        design_TR.T @ design_TR + torch.diag(pull),
        design_TR.T @ goal_TD + pull[:, None] * before.T,
    )
    refit.refit_down(block, BlockData(x_TD, wanted_TD, weight_T), frozenset(range(6)), RIDGE)
    actual = torch.cat([expert.down.weight for expert in block.routed], dim=1)
    # 200 sweeps have converged; what is left is the rounding of float32.
    torch.testing.assert_close(actual.T, expected_RD.float(), rtol=1e-3, atol=1e-4)


def test_only_the_named_experts_change_and_one_that_does_nothing_stays(
    block: RaggedMoEBlock,
) -> None:
    x_TD, wanted_TD = torch.randn(2, 300, 64, generator=torch.Generator().manual_seed(0))
    block.routed[1].up.weight.zero_()
    before = [expert.down.weight.clone() for expert in block.routed]
    refit.refit_down(block, BlockData(x_TD, wanted_TD, torch.ones(300)), frozenset({0, 1}), RIDGE)
    same = [
        torch.equal(old, expert.down.weight)
        for old, expert in zip(before, block.routed, strict=True)
    ]
    assert same == [False, True, True, True, True, True]


def with_twins(folders: dict[str, Path], root: Path) -> dict[str, Path]:
    """The folders with a model whose dropped dimensions equal kept ones but for `down`."""
    made = folders | {"model": root / "model"}
    made["model"].mkdir()
    for path in folders["model"].iterdir():
        (made["model"] / path.name).write_bytes(path.read_bytes())
    plain = pruned(folders, root / "plain", "calibrate", refit=False)
    kept, source = Checkpoint(plain), Checkpoint(made["model"])
    changed = {}
    for name, info in kept.tensors.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")) and ".experts." in name:
            rows, full = kept.read(name), source.read(name)
            if 0 < info.shape[0] < len(full):
                is_kept = (full[:, None] == rows[None]).all(-1).any(1)
                full[~is_kept] = np.resize(rows, full[~is_kept].shape)
                changed[name] = full
    overwrite(made["model"], changed)
    return made


def test_what_is_dropped_comes_back_where_what_stays_can_replace_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    made = with_twins(folders, tmp_path)
    plain = pruned(made, tmp_path / "without", "calibrate", refit=False)
    words = {"refit": {"ridge": 1e-6, "mix": 0.0}, "save_padded": True}
    fitted = pruned(made, tmp_path / "with", "calibrate", **words)
    ids = torch.randint(0, 256, (4, 40), generator=torch.Generator().manual_seed(1))

    def logits(folder: Path) -> torch.Tensor:
        with torch.no_grad():
            actual: torch.Tensor = load_torch_model(folder, torch.float32)(ids).logits
        return actual

    whole = logits(made["model"])
    lost = {f.name: float((logits(f) - whole).square().mean()) for f in (plain, fitted)}
    # What an expert of the first layer did, which is emptied, does not come back.
    assert lost["with"] < 0.4 * lost["without"]
    torch.testing.assert_close(logits(fitted / "padded"), logits(fitted), rtol=1e-4, atol=1e-4)
    outcome = Ledger.load(fitted).refit
    before, after = Checkpoint(plain), Checkpoint(fitted)
    for name in before.tensors:
        same = np.array_equal(before.read(name), after.read(name))
        assert same == (name not in outcome.tensors), name
    # One expert of the first layer is emptied, and one of the second kept whole.
    assert outcome.experts == len(outcome.tensors) == 3 * 6 - 2
    assert all(block.taken < 1e-4 < 0.1 < block.pruned for block in outcome.blocks[1:])


def test_an_expert_that_too_few_tokens_reach_is_left_and_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    out = pruned(folders, tmp_path / "out", "few", refit=True)
    outcome = Ledger.load(out).refit
    assert (outcome.experts, outcome.blocks) == (0, ())
    # 40 tokens of a single sequence, none of which is held out: every pruned expert is left.
    assert len(outcome.left) == 3 * 6 - 2
    assert all(entry.tokens <= 40 for entry in outcome.left)


def test_without_the_fit_nothing_changes(folders: dict[str, Path], tmp_path: Path) -> None:
    out = pruned(folders, tmp_path / "out", "calibrate", refit=False)
    assert Ledger.load(out).refit == Refit(tensors=(), left=())


def begun_fit(folders: dict[str, Path], tmp_path: Path, weights: list[float]) -> LayerFits:
    """Fit of three sequences, of which the last is held out; every expert keeps a dimension."""
    sequences = [np.arange(start, start + 20, dtype=np.int32) for start in (0, 50, 100)]
    spec = spec_of(Checkpoint(folders["model"]).config)
    kept = {(layer, expert): np.arange(1) for layer in range(3) for expert in range(6)}
    return begun(
        folders["model"],
        replace(spec, widths=((1,) * 6,) * 3),
        kept,
        FitTokens(sequences, np.array(weights)),
        FitRule(ridge=0.01, mix=1.0),
        tmp_path,
    )


def test_with_mix_1_the_wanted_outputs_lead_back_to_the_unpruned_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    fit = begun_fit(folders, tmp_path, [1.0, 1.0, 1.0])
    fit.layer(0)
    with fit.model.layer(1), torch.no_grad():
        whole = fit.model.block(1)
        assert whole is not None
        wanted_TD = fit.data(1, whole).wanted_TD
        start = 0
        for number, batch in fit.batches.items():
            rows = slice(start, start + len(batch.real_T))
            start = rows.stop
            assert batch.real_T.all()
            whole.__dict__["forward"] = lambda x, rows=rows: wanted_TD[rows].view_as(x)
            actual_BLD = fit.run(1, number, fit.state(PRUNED, 1, number))
            expected_BLD = fit.state(INPUT, 2, number)
            torch.testing.assert_close(actual_BLD, expected_BLD, rtol=1e-4, atol=1e-4)
            assert (fit.state(PRUNED, 1, number) - fit.state(INPUT, 1, number)).abs().max() > 0.1


def test_errors_count_as_shares_of_the_unpruned_residual_stream(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    fit = begun_fit(folders, tmp_path, [1.0, 3.0, 2.0])
    with fit.model.layer(0), torch.no_grad():
        whole = fit.model.block(0)
        assert whole is not None
        weight_T = fit.data(0, whole).weight_T
    streams = [fit.state(INPUT, 1, number).flatten(0, 1) for number in fit.batches]
    share_T = torch.tensor([1.0, 3.0, 2.0]).repeat_interleave(20) / torch.cat(
        streams
    ).square().mean(1)
    torch.testing.assert_close(weight_T, share_T / share_T.mean(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("settings", [{"refit": True}, {"refit": True, "distill_blocks": True}])
def test_activations_that_overflow_are_named_by_layer(
    folders: dict[str, Path], tmp_path: Path, settings: dict[str, bool]
) -> None:
    shutil.copytree(folders["model"], tmp_path / "model")
    name = "model.layers.1.self_attn.o_proj.weight"
    values = Checkpoint(tmp_path / "model").read(name).astype(np.float32)
    values[3] = 3e38
    overwrite(tmp_path / "model", {name: values})
    changed = folders | {"model": tmp_path / "model"}
    with pytest.raises(CheckpointError, match=r"layer 1: activations .* are not finite in float32"):
        pruned(changed, tmp_path / "out", "calibrate", **settings)
