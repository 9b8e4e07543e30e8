"""Scores of a model on held-out documents, from its logits alone.

Legend: T tokens of a document, V vocabulary.

Scoring is teacher-forced: a document matches exactly when the most likely token is the right one at
every token of its answer, which is the same as greedy decoding giving exactly that answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.documents import DocumentScores
from moe_export.artifacts.validation import TaskScores
from moe_export.documents.tokens import TokenSequence

LOGIT_BATCH_BYTES = 1 << 28
"""Most logits held at a time, in float32: 256 MiB is 440 tokens of a vocabulary of 152 000."""

CHUNK_BYTES = 1 << 26
"""Most probabilities computed at a time, in float64; about four copies of them exist."""

LARGEST_EXPONENT = 700.0
"""Largest number of nats whose exponential is given; that of a larger one is no float."""


@dataclass
class Tally:
    """Running sums over the documents of one task.

    Attributes:
        has_answers: True if the documents have a prompt, so that an exact match means something.
        items: number of documents.
        matches: number of documents with every scored token right.
        tokens: number of scored tokens.
        loss_nats: negative log-likelihood, summed over the scored tokens.
        kl_nats: divergence from the reference, summed over the scored tokens.
        agreements: number of scored tokens whose most likely token is the reference's.
        compared: True if a document was scored with a reference.
        tokens_by_document: number of scored tokens of each document.
        matches_by_document: True for each document with every scored token right.
        kl_nats_by_document: divergence of each document; empty without a reference.
        loss_nats_by_document: negative log-likelihood of each document.
        first_matches: number of documents whose first scored token is right.
        choices_by_document: True for each document whose answer is the likeliest of its choices;
            empty for a task without choices.
    """

    has_answers: bool
    items: int = 0
    matches: int = 0
    tokens: int = 0
    loss_nats: float = 0.0
    kl_nats: float = 0.0
    agreements: int = 0
    compared: bool = False
    tokens_by_document: list[int] = field(default_factory=list)
    matches_by_document: list[bool] = field(default_factory=list)
    kl_nats_by_document: list[float] = field(default_factory=list)
    loss_nats_by_document: list[float] = field(default_factory=list)
    first_matches: int = 0
    choices_by_document: list[bool] = field(default_factory=list)

    def scores(self) -> TaskScores:
        """Returns the means with their standard errors."""
        rate = self.matches / self.items
        loss = self.loss_nats / self.tokens
        divergence = {}
        if self.compared:
            divergence = {
                "kl_nats": self.kl_nats / self.tokens,
                "kl_nats_stderr": self._error_of_mean(self.kl_nats_by_document),
                "top1_agreement": self.agreements / self.tokens,
            }
        return TaskScores(
            items=self.items,
            answer_tokens=self.tokens,
            exact_match=rate if self.has_answers else None,
            exact_match_stderr=self._error_of_rate(rate) if self.has_answers else None,
            loss_nats=loss,
            perplexity=math.exp(min(loss, LARGEST_EXPONENT)),
            loss_nats_stderr=self._error_of_mean(self.loss_nats_by_document),
            **divergence,
            **self._rates(),
        )

    def _rates(self) -> dict[str, float]:
        """Rates of documents that ask less than an exact match, with their standard errors."""
        rates = {}
        if self.has_answers:
            rates["first_token_match"] = self.first_matches / self.items
        if self.choices_by_document:
            rates["choice_accuracy"] = sum(self.choices_by_document) / self.items
        return rates | {f"{name}_stderr": self._error_of_rate(r) for name, r in rates.items()}

    def _error_of_rate(self, rate: float) -> float:
        return math.sqrt(rate * (1 - rate) / self.items)

    def _error_of_mean(self, sums: Sequence[float]) -> float | None:
        """Standard error of a mean per token from its sums by document; None for one document."""
        if self.items < 2:
            return None
        # The ratio of two sums has the error of its residuals by document.
        tokens_N = np.array(self.tokens_by_document, float)
        residuals_N = np.array(sums) - sum(sums) / tokens_N.sum() * tokens_N
        return float(residuals_N.std(ddof=1) / (math.sqrt(self.items) * tokens_N.mean()))

    def document_scores(self) -> DocumentScores:
        """Returns the scores of each document."""
        return DocumentScores(
            tokens=tuple(self.tokens_by_document),
            matches=tuple(self.matches_by_document),
            kl_nats=tuple(self.kl_nats_by_document),
            choices=tuple(self.choices_by_document) or None,
        )


def batches(sequences: Sequence[TokenSequence], vocabulary: int) -> Iterator[list[TokenSequence]]:
    """Yields sequences by length, in batches whose padded logits fit `LOGIT_BATCH_BYTES`."""
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
        logits_TV: logits of the model at every position, float32 [T, V].
        reference_TV: logits of the unpruned model, for divergence and agreement; None without one.
    """
    first = max(sequence.prompt_tokens, 1)
    targets = np.array(sequence.tokens[first:])
    if targets.size == 0:
        return
    tally.items += 1
    tally.tokens += targets.size
    matches, kl_nats, loss_nats = True, 0.0, 0.0
    for rows in row_chunks(targets.size, logits_TV.shape[-1]):
        here = slice(first - 1 + rows.start, first - 1 + rows.stop)
        log_p, gold = log_softmax(logits_TV[here]), targets[rows]
        gain_nats = float(log_p[np.arange(gold.size), gold].sum())
        tally.loss_nats -= gain_nats
        loss_nats -= gain_nats
        is_right = log_p.argmax(-1) == gold
        matches &= bool(is_right.all())
        if rows.start == 0:
            tally.first_matches += bool(is_right[0])
        if reference_TV is not None:
            log_q = log_softmax(reference_TV[here])
            tally.compared = True
            kl_nats += divergence_nats(log_q, log_p)
            tally.agreements += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
    tally.matches += matches
    tally.loss_nats_by_document.append(loss_nats)
    tally.tokens_by_document.append(targets.size)
    tally.matches_by_document.append(matches)
    if reference_TV is not None:
        tally.kl_nats += kl_nats
        tally.kl_nats_by_document.append(kl_nats)


def answer_nats(sequence: TokenSequence, logits_TV: NDArray[np.float32]) -> float:
    """Returns the negative log-likelihood of the tokens after the prompt, in nats."""
    tally = Tally(has_answers=True)
    tally_document(tally, sequence, logits_TV, None)
    return tally.loss_nats


def row_chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Yields ranges of positions whose probabilities fit `CHUNK_BYTES`."""
    step = max(1, CHUNK_BYTES // (8 * vocabulary))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def divergence_nats(log_q: NDArray[np.float64], log_p: NDArray[np.float64]) -> float:
    """Returns KL(q, p), summed over all positions."""
    return float((np.exp(log_q) * (log_q - log_p)).sum())


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns log probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def mean_exact_match(tasks: Mapping[str, TaskScores]) -> float | None:
    """Returns the mean over the tasks that have answers; None if none has."""
    rates = [scores.exact_match for scores in tasks.values() if scores.exact_match is not None]
    return float(np.mean(rates)) if rates else None


def recovery(tasks: Mapping[str, TaskScores], baseline: Mapping[str, TaskScores]) -> float | None:
    """Returns the mean over tasks of the exact match divided by the baseline's.

    Tasks of which the baseline solves nothing are left out; None if no task is left.
    """
    rates = [
        scores.exact_match / before
        for name, scores in tasks.items()
        if name in baseline and (before := baseline[name].exact_match)
        if scores.exact_match is not None
    ]
    return float(np.mean(rates)) if rates else None
