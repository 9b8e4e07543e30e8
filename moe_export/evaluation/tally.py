"""Scores of a model on held-out documents, from its logits alone.

Legend: T tokens of a document, V vocabulary.

Scoring is teacher-forced: a document matches exactly when the most likely token is the right one at
every token of its answer, which is the same as greedy decoding giving exactly that answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moe_export.documents.tokens import TokenSequence

LOGIT_BATCH_BYTES = 1 << 28
"""Logits held at a time, in float32: 256 MiB is 440 tokens of a vocabulary of 152 000."""

CHUNK_BYTES = 1 << 26
"""Probabilities computed at a time, in float64, of which there are about four copies."""


@dataclass
class Documents:
    """What was found of each document of a task, in the order they were scored.

    Attributes:
        tokens: that were scored.
        matches: whether all of them were right.
        kl_nats: sum over them; empty where there is no reference.
    """

    tokens: list[int] = field(default_factory=list)
    matches: list[bool] = field(default_factory=list)
    kl_nats: list[float] = field(default_factory=list)


@dataclass
class Tally:
    """Sums over the documents of one task, and what they are sums of.

    Attributes:
        has_answers: whether the documents have a prompt, so that an exact match means something.
    """

    has_answers: bool
    items: int = 0
    matches: int = 0
    tokens: int = 0
    loss_nats: float = 0.0
    kl_nats: float = 0.0
    agreements: int = 0
    compared: bool = field(default=False)
    documents: Documents = field(default_factory=Documents)

    def as_dict(self) -> dict[str, float | int | None]:
        """Means, with the standard error of the match rate."""
        rate = self.matches / self.items
        loss = self.loss_nats / self.tokens
        result: dict[str, float | int | None] = {
            "items": self.items,
            "answer_tokens": self.tokens,
            "exact_match": rate if self.has_answers else None,
            "exact_match_stderr": (
                math.sqrt(rate * (1 - rate) / self.items) if self.has_answers else None
            ),
            "loss_nats": loss,
            "perplexity": math.exp(loss),
        }
        if self.compared:
            result["kl_nats"] = self.kl_nats / self.tokens
            result["top1_agreement"] = self.agreements / self.tokens
        return result


def batches(sequences: Sequence[TokenSequence], vocabulary: int) -> Iterator[list[TokenSequence]]:
    """Sequences by length, in batches whose padded logits stay within `LOGIT_BATCH_BYTES`."""
    budget_tokens = LOGIT_BATCH_BYTES // (4 * vocabulary)
    batch: list[TokenSequence] = []
    for sequence in sorted(sequences, key=lambda s: len(s.tokens)):
        if batch and (len(batch) + 1) * len(sequence.tokens) > budget_tokens:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


def tally_document(
    tally: Tally,
    sequence: TokenSequence,
    logits_TV: NDArray[np.float32],
    reference_TV: NDArray[np.float32] | None,
) -> None:
    """Adds one document to a tally.

    Args:
        tally: the sums to add to.
        sequence: the document; its tokens after the prompt are scored.
        logits_TV: the model's logits at every position.
        reference_TV: those of the unpruned model, for divergence and agreement; None without one.
    """
    first = max(sequence.prompt_tokens, 1)
    targets = np.array(sequence.tokens[first:])
    if targets.size == 0:
        return
    tally.items += 1
    tally.tokens += targets.size
    matches, kl_nats = True, 0.0
    for rows in row_chunks(targets.size, logits_TV.shape[-1]):
        here = slice(first - 1 + rows.start, first - 1 + rows.stop)
        log_p, gold = log_softmax(logits_TV[here]), targets[rows]
        tally.loss_nats -= float(log_p[np.arange(gold.size), gold].sum())
        matches &= bool((log_p.argmax(-1) == gold).all())
        if reference_TV is not None:
            log_q = log_softmax(reference_TV[here])
            tally.compared = True
            kl_nats += divergence_nats(log_q, log_p)
            tally.agreements += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
    tally.matches += matches
    tally.documents.tokens.append(targets.size)
    tally.documents.matches.append(matches)
    if reference_TV is not None:
        tally.kl_nats += kl_nats
        tally.documents.kl_nats.append(kl_nats)


def row_chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Positions in parts, for whose probabilities `CHUNK_BYTES` are enough."""
    step = max(1, CHUNK_BYTES // (8 * vocabulary))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def divergence_nats(log_q: NDArray[np.float64], log_p: NDArray[np.float64]) -> float:
    """KL(q, p), summed over all positions."""
    return float((np.exp(log_q) * (log_q - log_p)).sum())


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def mean_exact_match(tasks: dict[str, dict[str, float | int | None]]) -> float | None:
    """Mean over the tasks that have answers; None if none has."""
    rates = [score["exact_match"] for score in tasks.values() if score["exact_match"] is not None]
    return float(np.mean(rates)) if rates else None
