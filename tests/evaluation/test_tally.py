from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_export.artifacts.validation import TaskScores
from moe_export.documents.tokens import TokenSequence
from moe_export.evaluation import tally as evaluation
from moe_export.evaluation.tally import (
    Tally,
    batches,
    log_softmax,
    mean_exact_match,
    recovery,
    tally_document,
)


def certain_of(tokens: list[int], vocabulary: int) -> np.ndarray:
    """Logits that give each next token of a sequence almost all probability."""
    logits = np.zeros((len(tokens), vocabulary), np.float32)
    for position, token in enumerate(tokens[1:]):
        logits[position, token] = 50.0
    return logits


def test_only_the_answer_is_scored() -> None:
    sequence = TokenSequence([0, 1, 2, 3, 4], prompt_tokens=3)
    logits = certain_of([0, 9, 9, 3, 4], 10)  # wrong within the prompt
    tally = Tally(has_answers=True)
    tally_document(tally, sequence, logits, None)
    score = tally.scores()
    assert (score.items, score.answer_tokens, score.exact_match) == (1, 2, 1.0)
    assert score.loss_nats == pytest.approx(0.0, abs=1e-12)


def test_one_wrong_answer_token_is_no_match() -> None:
    tally = Tally(has_answers=True)
    tally_document(tally, TokenSequence([0, 1, 2, 3], 1), certain_of([0, 1, 9, 3], 10), None)
    tally_document(tally, TokenSequence([0, 1, 2, 3], 1), certain_of([0, 1, 2, 3], 10), None)
    score = tally.scores()
    assert score.exact_match == 0.5
    assert score.exact_match_stderr == pytest.approx(math.sqrt(0.25 / 2))


def test_a_document_without_a_prompt_is_scored_from_its_second_token() -> None:
    tally = Tally(has_answers=False)
    tally_document(tally, TokenSequence([0, 1, 2], 0), np.zeros((3, 8), np.float32), None)
    score = tally.scores()
    assert score.answer_tokens == 2
    assert score.loss_nats == pytest.approx(math.log(8))
    assert score.perplexity == pytest.approx(8)
    assert score.exact_match is None


def test_divergence_from_itself_is_zero_and_from_another_model_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    sequence = TokenSequence([0, 1, 2], 1)
    ours, theirs = rng.standard_normal((2, 3, 5)).astype(np.float32)
    same, other = Tally(True), Tally(True)
    tally_document(same, sequence, ours, ours)
    tally_document(other, sequence, ours, theirs)
    assert same.scores().kl_nats == 0.0
    assert same.scores().top1_agreement == 1.0
    p = np.exp(theirs[:2].astype(np.float64))
    q = np.exp(ours[:2].astype(np.float64))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    assert other.scores().kl_nats == pytest.approx((p * np.log(p / q)).sum() / 2)


def test_a_document_scored_in_parts_has_the_scores_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    sequence = TokenSequence(rng.integers(0, 5, 9).tolist(), 2)
    ours, theirs = rng.standard_normal((2, 9, 5)).astype(np.float32)
    scores = []
    for chunk_bytes in (evaluation.CHUNK_BYTES, 3 * 5 * 8):
        monkeypatch.setattr(evaluation, "CHUNK_BYTES", chunk_bytes)
        tally = Tally(has_answers=True)
        tally_document(tally, sequence, ours, theirs)
        tally_document(tally, sequence, certain_of(sequence.tokens, 5), theirs)
        scores.append(tally.scores())
    assert len(list(evaluation.row_chunks(7, 5))) == 3
    assert scores[0].plain() == pytest.approx(scores[1].plain())
    assert scores[0].exact_match == 0.5


@given(st.lists(st.integers(2, 40), min_size=1, max_size=20))
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int]) -> None:
    sequences = [TokenSequence([0] * length, 1) for length in lengths]
    vocabulary = evaluation.LOGIT_BATCH_BYTES // (4 * 100)  # a budget of 100 tokens
    found = list(batches(sequences, vocabulary))
    assert sorted(len(s.tokens) for batch in found for s in batch) == sorted(lengths)
    assert all(len(b) * max(len(s.tokens) for s in b) <= 100 for b in found)


def test_log_softmax_survives_large_logits() -> None:
    assert log_softmax(np.array([[1e4, 0.0]], np.float32))[0, 0] == 0.0


def scored(exact_match: float | None) -> TaskScores:
    return TaskScores(
        items=10,
        answer_tokens=20,
        exact_match=exact_match,
        exact_match_stderr=None,
        loss_nats=0.1,
        perplexity=1.1,
    )


def test_the_mean_of_matches_leaves_out_tasks_without_answers() -> None:
    assert mean_exact_match({"a": scored(0.5), "b": scored(None)}) == 0.5
    assert mean_exact_match({"b": scored(None)}) is None


def test_recovery_leaves_out_what_the_baseline_cannot_do() -> None:
    baseline = {"a": scored(0.8), "b": scored(0.0), "c": scored(None)}
    pruned = {"a": scored(0.4), "b": scored(0.3), "c": scored(None)}
    assert recovery(pruned, baseline) == pytest.approx(0.5)
    assert recovery(pruned, {}) is None


def test_first_tokens_and_choices_are_rates_of_documents_with_their_errors() -> None:
    tally = Tally(has_answers=True)
    for tokens in ([0, 1, 9, 3], [0, 9, 2, 3], [0, 1, 2, 3], [0, 1, 9, 9]):
        tally_document(tally, TokenSequence([0, 1, 2, 3], 1), certain_of(tokens, 10), None)
    tally.choices_by_document = [True, True, False, True]
    score = tally.scores()
    assert (score.exact_match, score.first_token_match, score.choice_accuracy) == (0.25, 0.75, 0.75)
    assert score.first_token_match_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert score.choice_accuracy_stderr == score.first_token_match_stderr


def test_a_task_without_answers_or_choices_has_no_such_rates() -> None:
    tally = Tally(has_answers=False)
    tally_document(tally, TokenSequence([0, 1], 0), certain_of([0, 1], 10), None)
    score = tally.scores()
    assert score.first_token_match is None
    assert score.choice_accuracy is None
    assert score.loss_nats_stderr is None  # one document tells nothing of the spread
    assert not score.plain().keys() & {"first_token_match", "choice_accuracy", "kl_nats_stderr"}


def test_the_errors_of_means_per_token_are_those_of_a_ratio() -> None:
    rng = np.random.default_rng(0)
    tally = Tally(has_answers=False)
    for length in (3, 5):
        ours, theirs = rng.standard_normal((2, length, 5)).astype(np.float32)
        sequence = TokenSequence(rng.integers(0, 5, length).tolist(), 0)
        tally_document(tally, sequence, ours, theirs)
    score = tally.scores()
    # Two documents of 2 and 4 tokens: residuals are r and -r, their spread is r * sqrt(2).
    residual = tally.loss_nats_by_document[0] - 2 * score.loss_nats
    assert score.loss_nats_stderr == pytest.approx(abs(residual) / 3)
    assert score.kl_nats_stderr == pytest.approx(
        abs(tally.kl_nats_by_document[0] - 2 * score.kl_nats) / 3
    )
    assert sum(tally.loss_nats_by_document) == pytest.approx(tally.loss_nats)
