"""Ends of answers: does the unpruned model write an end-of-sequence token after them?

Base models seldom do. If the token were asked of them, no answer would ever match.

Legend: T tokens of a document, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from moe_export.artifacts.validation import AnswerEnds
from moe_export.documents.tokens import TokenSequence
from moe_export.evaluation.choices import LogitsOf
from moe_export.evaluation.tally import batches

LOOKED_AT = 64
"""Most documents of a task that are looked at."""

ENOUGH = 0.5
"""Share of them whose end the model must foresee for the token to be asked for."""


def answer_ends(
    logits_of: LogitsOf,
    sequences: Sequence[TokenSequence],
    ends: Collection[int],
    vocabulary: int,
) -> AnswerEnds | None:
    """Counts the answers after which a model finds an end-of-sequence token most likely.

    Args:
        logits_of: The unpruned model.
        sequences: Documents with answers.
        ends: Ids of end-of-sequence tokens.
        vocabulary: Number of tokens of the vocabulary, which bounds the batches.

    Returns:
        The counts and the conclusion; None if no document ends with such a token.
    """
    ended = [each for each in sequences if _has_end(each, ends)][:LOOKED_AT]
    if not ended:
        return None
    foreseen = sum(
        int(logits_TV[-2].argmax()) in ends
        for batch in batches(ended, vocabulary)
        for logits_TV in logits_of(batch)
    )
    return AnswerEnds(
        documents=len(ended), foreseen=foreseen, required=foreseen >= ENOUGH * len(ended)
    )


def without_ends(sequences: Sequence[TokenSequence], ends: Collection[int]) -> list[TokenSequence]:
    """Documents without the end-of-sequence token, in their alternatives too."""
    return [
        replace(
            each,
            tokens=each.tokens[:-1] if _has_end(each, ends) else each.tokens,
            alternatives=tuple(without_ends(each.alternatives, ends)),
        )
        for each in sequences
    ]


def _has_end(sequence: TokenSequence, ends: Collection[int]) -> bool:
    """True if the last token ends a sequence, and the answer has another one before it."""
    return len(sequence.tokens) > sequence.prompt_tokens + 1 and sequence.tokens[-1] in ends
