"""Whole documents packed into rows; each is blind to the others, and its positions begin at 0.

A packed document is computed exactly as it is alone.

Legend: R rows of a batch, L positions of a row.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from moe_export.documents.tokens import TokenSequence
from moe_export.families.base import ModelSpec

POOL_DOCUMENTS = 256
"""Documents among which those that fit into a batch are looked for."""

NOBODY = -1
"""Number of the document at a position of padding."""

Packing = list[list[int]]
"""Numbers of the documents of each row of a batch."""


def packs(spec: ModelSpec) -> bool:
    """True if a mask alone keeps the documents of a row apart.

    It does not in layers that carry a state from token to token, and where a mask of ours would
    take the place of a window of attention.
    """
    return not spec.has_fixed_states and not any(spec.windows)


@dataclass(frozen=True)
class PackedBatch:
    """Rows of packed documents, every tensor [R, L].

    Attributes:
        input_RL: Token ids, int64.
        label_RL: Tokens that follow them in the same document, int64.
        weight_RL: Weight of each token's loss, float32; 0 at padding.
        position_RL: Positions in the document, int64.
        document_RL: Number of the document in the batch, int64; `NOBODY` at padding.
    """

    input_RL: Tensor
    label_RL: Tensor
    weight_RL: Tensor
    position_RL: Tensor
    document_RL: Tensor

    @property
    def is_real_RL(self) -> Tensor:
        """True at positions of documents, bool [R, L]."""
        return self.document_RL != NOBODY

    def attention_mask(self) -> Tensor | None:
        """Additive mask, float32 [R, 1, L, L]: earlier positions of the same document.

        None if every row holds one document, which needs no mask: no position sees a later one.
        """
        first_R1 = self.document_RL[:, :1]
        if bool(((self.document_RL == first_R1) | ~self.is_real_RL).all()):
            return None
        is_same_RLL = self.document_RL[:, :, None] == self.document_RL[:, None, :]
        # The least float32 keeps the softmax at padding free of NaN.
        least = torch.finfo(torch.float32).min
        return torch.where(is_same_RLL.tril(), 0.0, least)[:, None]


def packings(
    lengths: Sequence[int],
    rows: int,
    row_tokens: int,
    *,
    seed: int,
    epochs: int | None = None,
    steps: int | None = None,
    alone: bool = False,
) -> list[Packing]:
    """Documents of each row of each step, in a new random order every epoch.

    Documents go into the first row with room; those that find none wait for the next batch.

    Args:
        lengths: Predicted tokens of each document, at most `row_tokens` and at least 1.
        rows: Rows of a batch.
        row_tokens: Positions of a row.
        seed: Seed of the order.
        epochs: Passes over the documents; None if `steps` is given.
        steps: Number of batches.
        alone: True if every document gets a row of its own.
    """
    if alone:
        lengths = [row_tokens] * len(lengths)
    batches = _batches(_order(len(lengths), seed, epochs), lengths, rows, row_tokens)
    return list(islice(batches, steps))


def _order(documents: int, seed: int, epochs: int | None) -> Iterator[int]:
    rng = random.Random(f"tune {seed}")
    done = 0
    while epochs is None or done < epochs:
        numbers = list(range(documents))
        rng.shuffle(numbers)
        yield from numbers
        done += 1


def _batches(
    order: Iterator[int], lengths: Sequence[int], rows: int, row_tokens: int
) -> Iterator[Packing]:
    pool: list[int] = []
    while True:
        pool.extend(islice(order, POOL_DOCUMENTS - len(pool)))
        if not pool:
            return
        packed, pool = _first_fit(pool, lengths, rows, row_tokens)
        yield packed


def _first_fit(
    pool: list[int], lengths: Sequence[int], rows: int, row_tokens: int
) -> tuple[Packing, list[int]]:
    packed: Packing = [[] for _ in range(rows)]
    room, left = [row_tokens] * rows, []
    for number in pool:
        row = next((row for row in range(rows) if lengths[number] <= room[row]), None)
        if row is None:
            left.append(number)
            continue
        packed[row].append(number)
        room[row] -= lengths[number]
    return [row for row in packed if row], left


def batch_of(
    packed: Packing, documents: Sequence[TokenSequence], row_tokens: int, prompt_weight: float
) -> PackedBatch:
    """Batch of packed documents.

    Args:
        packed: Numbers of the documents of each row.
        documents: All documents, of 2 tokens or more.
        row_tokens: Positions of a row.
        prompt_weight: Weight of a prompt's tokens in the loss.
    """
    shape = (len(packed), row_tokens)
    batch = PackedBatch(
        input_RL=torch.zeros(shape, dtype=torch.int64),
        label_RL=torch.zeros(shape, dtype=torch.int64),
        weight_RL=torch.zeros(shape),
        position_RL=torch.zeros(shape, dtype=torch.int64),
        document_RL=torch.full(shape, NOBODY),
    )
    for row, numbers in enumerate(packed):
        start = 0
        for number in numbers:
            start = _put(batch, row, start, number, documents[number], prompt_weight)
    return batch


def _put(
    batch: PackedBatch,
    row: int,
    start: int,
    number: int,
    document: TokenSequence,
    prompt_weight: float,
) -> int:
    """Puts a document into a row, and returns the position after it."""
    tokens = torch.tensor(document.tokens)
    length = len(tokens) - 1
    place = (row, slice(start, start + length))
    batch.input_RL[place] = tokens[:-1]
    batch.label_RL[place] = tokens[1:]
    batch.weight_RL[place] = 1.0
    batch.weight_RL[row, start : start + max(document.prompt_tokens - 1, 0)] = prompt_weight
    batch.position_RL[place] = torch.arange(length)
    batch.document_RL[place] = number
    return start + length
