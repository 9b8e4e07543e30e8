"""Rows, sampling and text of the server, without HTTP."""

from __future__ import annotations

import threading
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from moe_export.demo import tasks
from moe_export.documents.continuation import Continuation
from moe_export.documents.tokens import TextTokenizer
from moe_export.ort.session import OrtModel
from moe_export.serve.engine import Engine, QueueFullError, StoppedError
from moe_export.serve.job import Asked, Job, Piece
from moe_export.serve.limits import Limits
from moe_export.serve.sampling import Sampler, score
from moe_export.serve.slots import Slots
from moe_export.serve.text import StopStrings
from tests.helpers.engine import Run, Silent, greedy, require_answers, tokens

CLOSE = 2e-5
"""Largest difference of logits of size 10 in float32 between matrices of other row counts."""


@pytest.fixture(scope="module")
def session(demo: Path) -> OrtModel:
    return OrtModel(demo, "cpu", 1, "portable", "static")


def test_rows_do_not_see_each_other_and_wait_while_others_run(session: OrtModel) -> None:
    slots = Slots(session, 4, 48)
    early, late, part = tokens(9, 1), tokens(5, 2), tokens(20, 3)
    padded = np.array([early, late + [0] * 4])
    logits = slots.prompts(0, padded, np.array([9, 5]))
    np.testing.assert_allclose(logits[0], session.logits([early])[0], atol=CLOSE)
    np.testing.assert_allclose(logits[1, :5], session.logits([late])[0], atol=CLOSE)
    parts = [slots.chunk(3, np.array(part[:8]))]
    # Row 2 is free, row 1 sits out, and row 3 has half of its prompt.
    step = slots.token(np.array([7, 0, 0, 0]), np.array([True, False, False, False]))
    np.testing.assert_allclose(step[0], session.logits([[*early, 7]])[0][-1], atol=CLOSE)
    parts += [slots.chunk(3, np.array(part[8:19])), slots.chunk(3, np.array(part[19:]))]
    np.testing.assert_allclose(np.concatenate(parts), session.logits([part])[0], atol=CLOSE)
    last = slots.prompts(0, padded, np.array([9, 5]), last_only=True)
    for row in (0, 1):
        np.testing.assert_allclose(last[row, -1], logits[row, (8, 4)[row]], atol=CLOSE)
    slots.token(np.array([7]), np.array([True]))
    step = slots.token(np.array([8, 9, 0, 6]), np.array([True, True, False, True]))
    for row, sequence in ((0, [*early, 7, 8]), (1, [*late, 9]), (3, [*part, 6])):
        np.testing.assert_allclose(step[row], session.logits([sequence])[0][-1], atol=CLOSE)
    assert slots.filled.tolist() == [11, 6, 0, 21]


def test_jobs_of_many_lengths_take_turns_in_few_rows(session: OrtModel) -> None:
    engine = Engine(session, Limits(rows=3, context=64, queue=40, chunk=16), Silent())
    prompts = [tokens(count, count) for count in (1, 3, 16, 17, 40, 5, 2, 33, 60, 8)]
    runs = [Run(prompt, new) for prompt, new in zip(prompts, [4, 1, 9, 3] * 3, strict=False)]
    engine.start()
    require_answers(engine, session, runs)
    engine.stop()
    assert not engine.alive
    with pytest.raises(StoppedError):
        engine.submit([Run([1]).job])


def test_a_failed_step_ends_its_jobs_and_not_the_engine(
    session: OrtModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(session, Limits(rows=2, context=64, queue=4, chunk=16), Silent())
    broken = threading.Event()
    whole = Slots.token

    def token(self: Slots, *arguments: Any) -> Any:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("out of memory")
        return whole(self, *arguments)

    monkeypatch.setattr(Slots, "token", token)
    engine.start()
    first = Run(tokens(5, 1))
    engine.submit([first.job])
    assert first.finished()[1] == "error"
    second = Run(tokens(5, 1))
    engine.submit([second.job])
    assert second.finished() == (greedy(session, tokens(5, 1), 4), "length")
    engine.stop()
    assert "a step failed" in caplog.text


def test_a_job_that_is_alone_may_take_several_tokens_in_a_step(
    session: OrtModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drafts are given up where they do not save time; by this clock every step takes as long.
    monkeypatch.setattr("moe_export.serve.engine.time", Mock(perf_counter=count().__next__))
    steps: list[int] = []

    class Counting(Silent):
        def on_step(self, rows: int, tokens: int) -> None:
            steps.append(tokens)

    limits = Limits(rows=2, context=96, queue=4, chunk=16, speculate=True)
    engine = Engine(session, limits, Counting())
    engine.start()
    for prompt, new in ((tokens(4, 1) * 3, 40), (tokens(5, 2) * 2, 86)):
        run = Run(prompt, new)
        engine.submit([run.job])
        assert run.finished() == (greedy(session, prompt, new), "length")
        assert run.job.speculation is not None
        assert run.job.speculation.accepted > 0
    engine.stop()
    assert len(steps) < 40 + 86


def test_a_stop_of_the_engine_fails_the_jobs_that_are_left(session: OrtModel) -> None:
    engine = Engine(session, Limits(rows=1, context=512, queue=1, chunk=16), Silent())
    runs = [Run([5], 500), Run([6], 500)]
    engine.start()
    engine.submit([run.job for run in runs])
    with pytest.raises(QueueFullError):
        engine.submit([Run([7]).job, Run([8]).job])
    runs[0].pieces.get(timeout=30)
    engine.stop()
    assert [run.finished()[1] for run in runs] == ["error", "error"]


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(1.0, 1.0, 0)
    counts = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=4)
    # Four standard deviations of a share of one half.
    np.testing.assert_allclose(counts / 4000, [0.5, 0.3, 0.15, 0.05], atol=4 * 0.5 / 4000**0.5)
    cold = Sampler(0.5, 1.0, 0)
    squared = np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365
    counts = np.bincount([cold.choose(logits) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, squared, atol=4 * 0.5 / 4000**0.5)


def test_top_p_draws_from_the_fewest_tokens_that_reach_it() -> None:
    logits = np.log(np.array([0.15, 0.5, 0.05, 0.3]))
    for share, tokens_drawn in ((0.4, {1}), (0.6, {1, 3}), (0.9, {0, 1, 3}), (1.0, {0, 1, 2, 3})):
        sampler = Sampler(1.0, share, 0)
        assert {sampler.choose(logits) for _ in range(500)} == tokens_drawn
    assert Sampler(1e-9, 1.0, 0).choose(logits) == Sampler(0, 1.0, 0).choose(logits) == 1


def test_scores_are_logarithms_of_probabilities_best_first() -> None:
    made = score(np.log(np.array([1, 4, 2, 1], np.float32)), 2, 9)
    assert made.logprob == pytest.approx(np.log(0.25))
    assert [token for token, _ in made.best] == [1, 2, 0, 3]
    assert [logprob for _, logprob in made.best] == pytest.approx(np.log([0.5, 0.25, 0.125, 0.125]))


def test_pieces_of_text_are_the_text_in_whole_characters(demo: Path) -> None:
    tokenizer = TextTokenizer(demo)
    text = (
        "".join(document.answer for document in tasks.test_items("text", 3)) + "naïve 日本 🙂 end"
    )
    decoding = Continuation(tokenizer.decode, [])
    pieces = [decoding.add(token) for token in tokenizer.encode_text(text)]
    assert "".join(pieces) == text
    assert "🙂" in pieces
    assert "" in pieces


def test_an_answer_keeps_its_first_space_and_an_incomplete_character_at_its_end() -> None:
    words = {1: " a", 2: "\ufffd"}

    def decode(ids: list[int]) -> str:
        """Text as of a tokenizer that strips the space of the first word."""
        return "".join(words[number] for number in ids).removeprefix(" ")

    pieces: list[Piece] = []
    asked = Asked([1], 3, temperature=0, alternatives=None)
    job = Job(asked, [], decode, pieces.append)
    assert [job.continued(np.eye(3)[token]) for token in (1, 2, 2)] == [False, False, True]
    assert "".join(piece.text for piece in pieces) == " a\ufffd\ufffd"


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_text_is_cut_before_the_first_stop_string_however_it_arrives(size: int) -> None:
    text, stops = "one ab aba abab abc abcd", ["abcd", "abc", "babc"]
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    cut = StopStrings(stops)
    given = ""
    for part in parts:
        given += cut.add(part)
        if cut.met:
            break
    assert given + cut.rest() == "one ab aba abab "
    whole = StopStrings(["none", "abcde"])
    assert "".join(map(whole.add, parts)) + whole.rest() == text
