"""Multiple choice by likelihood, which asks less of a model than writing the answer.

A model chooses the answer to which it gives the highest probability after the prompt, that is the
sum of the log probabilities of all tokens of the answer. Long answers are not favoured by a mean.

Legend: T tokens of a document, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moe_export.documents.tokens import TokenSequence
from moe_export.evaluation.tally import answer_nats, batches

LogitsOf = Callable[[list[TokenSequence]], Sequence[NDArray[np.float32]]]
"""Function from sequences to the logits of each at every position, float32 [T, V]."""


def right_choices(
    logits_of: LogitsOf, sequences: Sequence[TokenSequence], vocabulary: int
) -> list[bool]:
    """Returns True for every sequence that is likelier than each of its alternatives.

    Args:
        logits_of: A model.
        sequences: Items with alternatives, in the order of the result.
        vocabulary: Number of tokens of the vocabulary, which bounds the batches.
    """
    # The last token of a row is only predicted. So choices that differ in nothing else, such as
    # all those of one token, share a context, which runs once.
    rows_by_context: dict[tuple[int, ...], list[TokenSequence]] = {}
    for row in (row for sequence in sequences for row in (sequence, *sequence.alternatives)):
        rows_by_context.setdefault(tuple(row.tokens[:-1]), []).append(row)
    contexts = [TokenSequence(list(tokens), 0) for tokens in rows_by_context]
    loss_nats: dict[int, float] = {}
    for batch in batches(contexts, vocabulary):
        loss_nats |= _losses(batch, logits_of(batch), rows_by_context)
    return [
        loss_nats[id(sequence)] < min(loss_nats[id(other)] for other in sequence.alternatives)
        for sequence in sequences
    ]


def _losses(
    batch: list[TokenSequence],
    logits: Sequence[NDArray[np.float32]],
    rows_by_context: Mapping[tuple[int, ...], list[TokenSequence]],
) -> dict[int, float]:
    """Loss by `id` of every row that has a context of this batch."""
    return {
        id(row): answer_nats(row, logits_TV)
        for context, logits_TV in zip(batch, logits, strict=True)
        for row in rows_by_context[tuple(context.tokens)]
    }
