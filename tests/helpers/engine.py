"""Jobs for the server's engine, without HTTP, and the tokens that they must get."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np

from moe_export.ort.session import OrtModel
from moe_export.serve.engine import Engine
from moe_export.serve.job import Asked, Job, Piece


class Silent:
    """Watcher that does nothing."""

    def on_turn(self, waiting: int, running: int) -> None:
        pass

    def on_step(self, rows: int, tokens: int) -> None:
        pass


class Run:
    """Job whose pieces are collected."""

    def __init__(self, prompt: list[int], new_tokens: int = 4, **options: Any) -> None:
        self.pieces: queue.Queue[Piece] = queue.Queue()
        asked = Asked(prompt, new_tokens, temperature=0, alternatives=0, **options)
        self.job = Job(asked, [], lambda ids: "x" * len(ids), self.pieces.put)

    def finished(self) -> tuple[list[int], str]:
        """Tokens and the reason of the end."""
        made: list[int] = []
        while True:
            piece = self.pieces.get(timeout=30)
            made += [one.token for one in piece.scores]
            if piece.finish is not None:
                return made, piece.finish


def greedy(session: OrtModel, prompt: list[int], count: int) -> list[int]:
    made: list[int] = []
    for _ in range(count):
        made.append(int(session.logits([prompt + made])[0][-1].argmax()))
    return made


def tokens(count: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(2, 1000, count)]


def require_answers(engine: Engine, session: OrtModel, runs: list[Run]) -> None:
    """Submits jobs to a started engine, and requires the tokens of the model alone."""
    for run in runs:
        engine.submit([run.job])
    for run in runs:
        asked = run.job.asked
        expected = greedy(session, asked.prompt, asked.new_tokens)
        assert run.finished() == (expected, "length")
