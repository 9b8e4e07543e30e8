"""Tests of the choice of experts for `method: esft`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moe_export.documents.tokens import TokenSequence
from moe_export.recipe import EsftSettings
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from moe_export.tuning.esft import _watched, reaching
from moe_export.tuning.forward import run_packed
from moe_export.tuning.packing import batch_of


@pytest.mark.parametrize(
    ("share", "chosen"),
    [
        (0.4, (3,)),  # reached exactly by the first
        (0.41, (0, 3)),  # of the two with 25, the first
        (0.65, (0, 3)),
        (0.66, (0, 2, 3)),
        (1.0, (0, 1, 2, 3)),
    ],
)
def test_experts_are_taken_from_the_highest_score_until_the_share(
    share: float, chosen: tuple[int, ...]
) -> None:
    assert reaching(torch.tensor([25.0, 10.0, 25.0, 40.0]), share) == chosen


@pytest.mark.parametrize("score", ["token", "gate"])
def test_scores_count_the_tokens_of_documents_and_no_padding(tmp_path: Path, score: str) -> None:
    model = load_torch_model(tiny_checkpoint(tmp_path / "model"), torch.float32)
    documents = [TokenSequence([1, 2, 3, 4, 5], 0), TokenSequence([9, 8, 7], 0)]
    totals = []
    for row_tokens in (6, 60):
        scores: dict[int, torch.Tensor] = {}
        batch = batch_of([[0, 1]], documents, row_tokens, 1.0)
        with _watched(model, batch, EsftSettings(score=score), scores), torch.no_grad():
            run_packed(model, batch)
        totals.append(torch.stack([scores[layer] for layer in range(3)]))
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-5, atol=1e-6)
    if score == "token":
        assert totals[0].sum(1).tolist() == [12.0] * 3
    else:
        assert (totals[0].sum(1) < 6.0).all()
