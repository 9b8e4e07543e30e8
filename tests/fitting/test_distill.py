"""Tests of router distillation: its loss, and the prune stage with it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from moe_export.artifacts.ledger import Distill, Ledger
from moe_export.checkpoint import Checkpoint, overwrite
from moe_export.errors import CalibrationError, RecipeError
from moe_export.fitting import distill
from moe_export.passes import loss
from moe_export.testing.families import QWEN3_MOE
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.fitting.pruned_runs import planned, pruned

RATE = 0.002
"""Learning rate; with few tokens of a random model, larger steps fit noise."""

ROUTERS = {f"model.layers.{layer}.mlp.gate.weight" for layer in range(3)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return planned(tmp_path_factory.mktemp("distill"))


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(folders, tmp_path_factory.mktemp("plain") / "out", "calibrate")


def changed(before: Path, after: Path) -> set[str]:
    first, second = Checkpoint(before), Checkpoint(after)
    assert first.tensors.keys() == second.tensors.keys()
    return {n for n in first.tensors if not np.array_equal(first.read(n), second.read(n))}


def distilled(folder: Path) -> Distill:
    found = Ledger.load(folder).distill
    assert found is not None
    return found


def test_the_divergence_and_its_gradient_are_those_of_autograd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(5, 11).double().requires_grad_(False)
    hidden_TD, teacher_TD = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    hidden_TD.requires_grad_()
    q_TV, p_TV = (F.log_softmax(head(x_TD) / 1.7, dim=-1) for x_TD in (teacher_TD, hidden_TD))
    expected = 1.7**2 * (q_TV.exp() * (q_TV - p_TV)).sum()
    (gradient_TD,) = torch.autograd.grad(expected, hidden_TD)
    for chunk_bytes in (loss.CHUNK_BYTES, 4 * 11 * 2 * 3):  # at once, and three positions each
        monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
        nats, actual_TD = loss.divergence_nats(hidden_TD.detach(), teacher_TD, head, 1.7)
        assert nats == pytest.approx(float(expected.detach()), rel=1e-12)
        torch.testing.assert_close(actual_TD, gradient_TD, rtol=1e-12, atol=1e-14)


def test_distilled_routers_bring_held_out_tokens_nearer_and_nothing_else_changes(
    folders: dict[str, Path], plain: Path, tmp_path: Path
) -> None:
    words = {"distill_router": {"steps": 30, "learning_rate": RATE}, "save_padded": True}
    out = pruned(folders, tmp_path / "out", "calibrate", **words)
    assert changed(plain, out) == ROUTERS
    found = distilled(out)
    assert set(found.tensors) == ROUTERS
    assert found.held_out_kl_nats.after < found.held_out_kl_nats.before
    # 60 sequences of 40 tokens, of which the last has no next: 7 are held out.
    assert (found.tokens, found.held_out_tokens) == (53 * 39, 7 * 39)
    assert Ledger.load(out).model_copy(update={"distill": None}) == Ledger.load(plain)
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        padded, small = (
            load_torch_model(folder, torch.float32)(ids).logits for folder in (out / "padded", out)
        )
    torch.testing.assert_close(padded, small, rtol=1e-4, atol=1e-4)


def test_a_model_that_is_streamed_gets_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"distill_router": {"steps": 4, "tokens_per_step": 500}}
    in_memory = pruned(folders, tmp_path / "memory", "calibrate", **words)
    monkeypatch.setattr(distill, "SMALL_MODEL_BYTES", 0)
    streamed = pruned(folders, tmp_path / "streamed", "calibrate", **words)
    for path in sorted(in_memory.iterdir()):
        assert path.read_bytes() == (streamed / path.name).read_bytes(), path.name


def test_refitting_comes_first_where_both_are_asked_for(
    folders: dict[str, Path], plain: Path, tmp_path: Path
) -> None:
    # With random weights only a strong ridge is better on held-out tokens.
    once = {"refit": {"ridge": 3.0}}
    refit = pruned(folders, tmp_path / "refit", "calibrate", **once)
    words = once | {"distill_router": {"steps": 30, "learning_rate": RATE}}
    both = pruned(folders, tmp_path / "both", "calibrate", **words)
    assert changed(refit, both) == ROUTERS
    refitted = Ledger.load(refit).refit
    assert refitted.experts
    assert Ledger.load(both).refit == refitted
    assert changed(plain, both) == ROUTERS | set(refitted.tensors)


def test_what_is_no_better_on_held_out_tokens_is_not_taken_and_that_is_said(
    folders: dict[str, Path], plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = {"distill_router": {"steps": 2, "learning_rate": 50.0}}
    with caplog.at_level(logging.WARNING):
        out = pruned(folders, tmp_path / "out", "calibrate", **words)
    assert "they stay as they were" in " ".join(caplog.text.split())
    assert changed(plain, out) == set()
    found = distilled(out)
    assert found.tensors == ()
    assert found.held_out_kl_nats.after >= found.held_out_kl_nats.before


def test_without_the_word_the_ledger_has_none(plain: Path) -> None:
    assert Ledger.load(plain).distill is None
    assert "distill" not in json.loads((plain / Ledger.FILE).read_text())


def test_a_single_sequence_is_too_few(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="two calibration sequences"):
        pruned(folders, tmp_path / "out", "few", distill_router={})


def test_routers_without_a_gradient_are_refused_by_name(tmp_path: Path) -> None:
    config = QWEN3_MOE.config | {"num_experts_per_tok": 1, "norm_topk_prob": True}
    model = tiny_checkpoint(tmp_path / "model", base=config)
    rule = distill.Rule(1, 0.01, 1.0, 100)
    with pytest.raises(RecipeError, match=r"prune\.distill_router: every token"):
        distill.distill_routers(model, model, [np.arange(9, dtype=np.int32)] * 2, rule, tmp_path)


def test_tensors_are_replaced_where_they_are_stored(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, dtype="bfloat16")
    name = "model.layers.1.mlp.gate.weight"
    before = {n: Checkpoint(directory).read(n) for n in Checkpoint(directory).tensors}
    values = np.linspace(-1, 1, before[name].size, dtype=np.float32).reshape(before[name].shape)
    overwrite(directory, {name: values})
    after = Checkpoint(directory)
    np.testing.assert_array_equal(after.read(name), values.astype(before[name].dtype))
    for other in before.keys() - {name}:
        np.testing.assert_array_equal(after.read(other), before[other])
