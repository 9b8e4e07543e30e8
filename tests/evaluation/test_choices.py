"""Multiple choice by likelihood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moe_export.documents.tokens import TokenSequence
from moe_export.evaluation import tally as evaluation
from moe_export.evaluation.choices import right_choices
from moe_export.evaluation.masking import ScoredTask, tally_tasks
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model

VOCABULARY = 4


def item(answer: list[int], *wrong: list[int]) -> TokenSequence:
    """An item with one token of prompt."""
    others = tuple(TokenSequence([0, *tokens], 1) for tokens in wrong)
    return TokenSequence([0, *answer], 1, alternatives=others)


def fixed_logits(sequences: list[TokenSequence]) -> list[np.ndarray]:
    """Logits of a model that gives token n the probability n / 6 everywhere."""
    row_V = np.log(np.array([1e-9, 1, 2, 3], np.float32) / 6)
    return [np.tile(row_V, (len(sequence.tokens), 1)) for sequence in sequences]


def test_the_answer_has_to_be_likelier_than_every_wrong_choice() -> None:
    items = [
        item([3], [1], [2]),
        item([2], [1], [3]),
        item([1], [2, 2]),  # 1/6 against 1/9: no mean per token, which would be 1/6 against 1/3
        item([2], [2]),  # as likely as another: not chosen
    ]
    assert right_choices(fixed_logits, items, VOCABULARY) == [True, False, True, False]


def test_small_batches_choose_the_same_in_the_order_of_the_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = [item([1, 1, 1], [2, 2, 2]), item([3], [1]), item([3, 3], [1])]
    monkeypatch.setattr(evaluation, "LOGIT_BATCH_BYTES", 4 * VOCABULARY * 5)
    assert right_choices(fixed_logits, items, VOCABULARY) == [False, True, True]


def test_choices_of_one_token_run_their_prompt_once() -> None:
    runs: list[list[int]] = []

    def counted(sequences: list[TokenSequence]) -> list[np.ndarray]:
        runs.extend(sequence.tokens for sequence in sequences)
        return fixed_logits(sequences)

    items = [item([3], [1], [2]), item([3, 3], [3, 1], [1, 1])]
    assert right_choices(counted, items, VOCABULARY) == [True, True]
    assert sorted(runs) == [[0], [0, 1], [0, 3]]


def test_a_model_in_torch_chooses_by_its_own_probabilities(tmp_path: Path) -> None:
    model = load_torch_model(tiny_checkpoint(tmp_path), torch.float32)
    items = [item([5, 6], [7, 8], [9]), item([7], [5, 5]), item([9, 9, 9], [7])]
    tally = tally_tasks(model, {"some": ScoredTask(True, items)})["some"]
    expected = []
    for each in sorted(items, key=lambda i: len(i.tokens)):
        likelihoods = []
        for row in (each, *each.alternatives):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.tokens])).logits[0, :-1].double()
            picked = torch.log_softmax(logits, -1)[range(len(row.tokens) - 1), row.tokens[1:]]
            likelihoods.append(float(picked.sum()))
        expected.append(likelihoods[0] > max(likelihoods[1:]))
    assert tally.choices_by_document == expected
    assert tally.scores().choice_accuracy == sum(expected) / 3
    assert tally.document_scores().choices == tuple(expected)
