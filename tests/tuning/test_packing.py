"""Tests of packing: which documents a step has, and the weights of their tokens."""

from __future__ import annotations

from collections import Counter

import torch

from moe_export.documents.tokens import TokenSequence
from moe_export.tuning.packing import NOBODY, batch_of, packings

LENGTHS = [3, 9, 4, 8, 5, 5, 2, 7, 6, 1]


def test_every_document_is_trained_on_once_in_an_epoch_and_no_row_is_too_long() -> None:
    steps = packings(LENGTHS, 2, 10, seed=0, epochs=2)
    used = Counter(number for packed in steps for row in packed for number in row)
    assert used == dict.fromkeys(range(len(LENGTHS)), 2)
    assert all(
        sum(LENGTHS[number] for number in row) <= 10 and row for packed in steps for row in packed
    )
    assert all(len(packed) <= 2 for packed in steps)


def test_the_order_follows_the_seed_and_changes_every_epoch() -> None:
    first, again, other = (packings(LENGTHS, 1, 10, seed=s, steps=12) for s in (0, 0, 1))
    assert first == again != other
    assert len(first) == 12
    assert len({tuple(map(tuple, packed)) for packed in first}) > 6


def test_prompts_padding_and_the_first_token_have_their_weights() -> None:
    documents = [TokenSequence([10, 11, 12, 13], 2), TokenSequence([20, 21], 0)]
    batch = batch_of([[0, 1]], documents, 6, 0.25)
    assert batch.input_RL.tolist() == [[10, 11, 12, 20, 0, 0]]
    assert batch.label_RL.tolist() == [[11, 12, 13, 21, 0, 0]]
    assert batch.weight_RL.tolist() == [[0.25, 1, 1, 1, 0, 0]]
    assert batch.position_RL.tolist() == [[0, 1, 2, 0, 0, 0]]
    assert batch.document_RL.tolist() == [[0, 0, 0, 1, NOBODY, NOBODY]]
    mask = batch.attention_mask()
    assert mask is not None
    mask_LL = mask[0, 0] == 0
    assert mask_LL[:4, :4].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [False, False, False, True],
    ]
    assert torch.isfinite(mask).all()
    assert batch_of([[0], [1]], documents, 6, 0.25).attention_mask() is None


def test_documents_that_may_not_be_packed_get_rows_of_their_own() -> None:
    steps = packings(LENGTHS, 2, 10, seed=0, epochs=1, alone=True)
    assert [len(packed) for packed in steps] == [2] * 5
    assert all(len(row) == 1 for packed in steps for row in packed)
