"""Tests of refitting `down`: the formula by hand, and the prune stage with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moe_export.artifacts.ledger import Ledger, Refit
from moe_export.checkpoint import Checkpoint
from moe_export.fitting.refit import refitted
from moe_export.torch_model import load_torch_model
from tests.fitting.pruned_runs import planned, pruned


def test_what_is_dropped_comes_back_where_it_is_a_mixture_of_what_stays() -> None:
    random = np.random.default_rng(0)
    kept_NP = torch.from_numpy(random.standard_normal((50, 4)))
    mixture = torch.from_numpy(random.standard_normal((4, 3)))
    h_NW = torch.cat([kept_NP, kept_NP @ mixture], 1)
    down_DW = torch.from_numpy(random.standard_normal((5, 7)))
    actual = torch.from_numpy(refitted(down_DW, h_NW, torch.arange(4), 1e-9)).double()
    torch.testing.assert_close(kept_NP @ actual.T, h_NW @ down_DW.T, rtol=1e-4, atol=1e-5)
    held = refitted(down_DW, h_NW, torch.arange(4), 1e9)
    np.testing.assert_allclose(held, down_DW[:, :4].numpy(), rtol=1e-6)


def test_an_expert_that_does_nothing_stays_as_it_is() -> None:
    down_DW = torch.arange(6.0).reshape(2, 3)
    actual = refitted(down_DW, torch.zeros(9, 3), torch.tensor([0, 2]), 0.01)
    np.testing.assert_allclose(actual, [[0, 2], [3, 5]], rtol=1e-6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return planned(tmp_path_factory.mktemp("refit"))


def test_refitted_the_logits_are_nearer_to_those_of_the_whole_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    plain = pruned(folders, tmp_path / "plain", "calibrate")
    refit = pruned(folders, tmp_path / "refit", "calibrate", refit_down=True, save_padded=True)
    ids = torch.randint(0, 256, (20, 40), generator=torch.Generator().manual_seed(1))

    def logits(folder: Path) -> torch.Tensor:
        with torch.no_grad():
            actual: torch.Tensor = load_torch_model(folder, torch.float32)(ids).logits
        return actual

    whole = logits(folders["model"])
    lost = {f.name: float((logits(f) - whole).square().mean()) for f in (plain, refit)}
    # Observed: 0.98; dimensions of random weights are hardly correlated.
    assert lost["refit"] < lost["plain"]
    torch.testing.assert_close(logits(refit / "padded"), logits(refit), rtol=1e-4, atol=1e-4)
    named = set(Ledger.load(refit).refit.tensors)
    before, after = Checkpoint(plain), Checkpoint(refit)
    for name in before.tensors:
        same = np.array_equal(before.read(name), after.read(name))
        assert same == (name not in named), name
    assert not any("layers.0.mlp.experts.0." in n or "layers.1.mlp.experts.1." in n for n in named)
    assert len(named) == 3 * 6 - 2


def test_an_expert_that_too_few_tokens_reach_is_left_and_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    out = pruned(folders, tmp_path / "out", "few", refit_down=True)
    left = Ledger.load(out).refit.left
    assert left
    for entry in left:
        kept = Checkpoint(out).tensors[entry.tensor].shape[1]
        assert entry.tokens < 2 * kept or kept == 0


def test_without_the_word_nothing_is_refitted(folders: dict[str, Path], tmp_path: Path) -> None:
    out = pruned(folders, tmp_path / "out", "calibrate")
    assert Ledger.load(out).refit == Refit(tensors=(), left=())
