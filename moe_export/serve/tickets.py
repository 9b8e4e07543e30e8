"""Sequences of one request, and their progress as the event loop sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from moe_export.serve.engine import Engine, QueueFullError, StoppedError
from moe_export.serve.job import Asked, Job, Piece
from moe_export.serve.metrics import Metrics
from moe_export.serve.problems import RequestError, failed


class Ticket:
    """Jobs of one request.

    Args:
        engine: Engine that runs them.
        metrics: Counts and times.
        asked: Request for each choice.
        eos_ids: Tokens that end the text.
        decode: Function from tokens to their text.

    Attributes:
        prompt_tokens: Number of tokens of the prompts, each counted once.
        new_tokens: Number of tokens generated so far.

    Raises:
        RequestError: The queue is full, or the server stops.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        asked: Sequence[Asked],
        eos_ids: Sequence[int],
        decode: Callable[[list[int]], str],
    ) -> None:
        self._engine, self._metrics = engine, metrics
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._started = time.perf_counter()
        self._open = len(asked)
        self.prompt_tokens = 0
        self.new_tokens = 0
        self._jobs = [
            Job(one, eos_ids, decode, self._listener(index)) for index, one in enumerate(asked)
        ]
        try:
            engine.submit(self._jobs)
        except QueueFullError:
            raise RequestError(
                429,
                "too many requests wait; send this one again later",
                code="queue_full",
                headers={"retry-after": "1"},
            ) from None
        except StoppedError:
            raise RequestError(503, "the server is stopping", code="stopping") from None

    def cancel(self) -> None:
        """Drops the jobs that still run; call it in every case, at the end."""
        for job in self._jobs:
            self._engine.cancel(job)
        self._metrics.new_tokens.inc(self.new_tokens)
        self._metrics.prompt_tokens.inc(self.prompt_tokens)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces of all choices as they come, each with the number of its choice.

        Raises:
            RequestError: A step failed, or the server stops.
        """
        while self._open:
            index, piece = await self._pieces.get()
            if piece.finish == "error":
                raise failed()
            if self.new_tokens == 0:
                self._metrics.first_token_s.observe(time.perf_counter() - self._started)
            self.new_tokens += piece.tokens
            self._open -= piece.finish is not None
            yield index, piece
        self._metrics.request_s.observe(time.perf_counter() - self._started)

    async def whole(self) -> list[list[Piece]]:
        """All pieces, by choice."""
        choices: list[list[Piece]] = [[] for _ in self._jobs]
        async for index, piece in self.pieces():
            choices[index].append(piece)
        return choices

    def _listener(self, index: int) -> Callable[[Piece], None]:
        """Function that hands the pieces of a choice from the engine to the event loop."""

        def listen(piece: Piece) -> None:
            # The loop is closed if the server was stopped by force.
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

        return listen


def choices_of(asked: Asked, count: int) -> list[Asked]:
    """Requests of several answers to one prompt, each with a seed of its own."""
    if asked.seed is None:
        return [asked] * count
    return [replace(asked, seed=(asked.seed + number) % 2**64) for number in range(count)]
