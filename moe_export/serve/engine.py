"""Thread that runs the model for all requests together.

Every turn runs one piece of a prompt and then one token of all sequences that have their prompts
behind them. A sequence that ends leaves its row to the next one at once.

Legend: B rows of a step, S tokens of the prompts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from moe_export.errors import RecipeError
from moe_export.ort.session import OrtModel
from moe_export.ort.speculation import Speculation, taken
from moe_export.serve.job import Job
from moe_export.serve.limits import Limits
from moe_export.serve.slots import Slots

log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """More sequences wait than the limit allows."""


class StoppedError(Exception):
    """The engine takes no more work."""


class Watcher(Protocol):
    """Observer of the engine."""

    def on_turn(self, waiting: int, running: int) -> None:
        """A turn begins with so many sequences that wait and run."""

    def on_step(self, rows: int, tokens: int) -> None:
        """A step ran so many rows, of which so many took part."""


class Engine:
    """Queue of sequences, and the thread that runs them.

    Args:
        model: Session that runs the steps.
        limits: Limits of rows, context and queue.
        watcher: Observer of turns and steps.

    Raises:
        RecipeError: The model has states of fixed size, and the limits ask for several tokens in a
            step, or it does not run on the CPU.
    """

    def __init__(self, model: OrtModel, limits: Limits, watcher: Watcher) -> None:
        if limits.speculate and model.fixed_states:
            raise RecipeError(
                "--speculate has to take back tokens, and this model has layers whose state cannot "
                "go back; leave it out"
            )
        self._limits, self._watcher = limits, watcher
        self._slots = Slots(model, limits.rows, limits.context)
        self._rows: list[Job | None] = [None] * limits.rows
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its turn; jobs that are left fail."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """True while the thread takes work."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues jobs, all or none.

        Raises:
            QueueFullError: They do not fit into the queue.
            StoppedError: The engine takes no more work.
        """
        with self._changed:
            if not self.alive:
                raise StoppedError
            free = sum(job is None for job in self._rows)
            if len(self._waiting) + len(jobs) > self._limits.queue + free:
                raise QueueFullError
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Drops a job; its row is free after the present step."""
        job.cancelled = True

    def _work(self) -> None:
        while self._admit():
            try:
                self._prefill()
                self._decode()
            except Exception:  # one bad step must not end the service
                log.exception("a step failed; the requests that took part in it end")
                self._fail_all()
        self._fail_all()

    def _admit(self) -> bool:
        """Gives free rows to jobs that wait; waits itself for the first. False: stop."""
        with self._changed:
            self._drop_cancelled()
            self._watcher.on_turn(len(self._waiting), len(self._running()))
            while not (self._waiting or self._running() or self._stopping):
                self._changed.wait()
            for row, job in enumerate(self._rows):
                if job is None and self._waiting:
                    self._place(self._waiting.popleft(), row)
            return not self._stopping

    def _drop_cancelled(self) -> None:
        for job in self._running():
            if job.cancelled:
                self._leave(job)
        self._waiting = deque(job for job in self._waiting if not job.cancelled)

    def _prefill(self) -> None:
        """Runs the next part of a prompt, or several short prompts in neighbouring rows."""
        jobs = [job for job in self._running() if job.remaining]
        if not jobs:
            return
        started = next((job for job in jobs if job.done), None)
        first = started or jobs[0]
        if started is not None or first.remaining > self._limits.chunk:
            self._run_chunk(first)
        else:
            self._run_prompts(self._neighbours(jobs))

    def _run_chunk(self, job: Job) -> None:
        part = job.asked.prompt[job.done : job.done + self._limits.chunk]
        ids_S, last_only = np.array(part, np.int64), not job.asked.score_prompt
        if job.ran(len(part), self._slots.chunk(job.row, ids_S, last_only)):
            self._leave(job)

    def _neighbours(self, jobs: list[Job]) -> list[Job]:
        """Jobs in neighbouring rows whose padded prompts fit into one step."""
        chosen, longest = [jobs[0]], jobs[0].remaining
        for job in jobs[1:]:
            longest = max(longest, job.remaining)
            adjacent = job.row == chosen[-1].row + 1
            if not adjacent or longest * (len(chosen) + 1) > self._limits.chunk:
                break
            chosen.append(job)
        return chosen

    def _run_prompts(self, jobs: list[Job]) -> None:
        lengths_B = np.array([job.remaining for job in jobs])
        ids_BS = np.zeros((len(jobs), lengths_B.max()), np.int64)
        for ids_S, job in zip(ids_BS, jobs, strict=True):
            ids_S[: job.remaining] = job.asked.prompt
        last_only = not any(job.asked.score_prompt for job in jobs)
        logits = self._slots.prompts(jobs[0].row, ids_BS, lengths_B, last_only)
        for job, logits_LV, length in zip(jobs, logits, lengths_B, strict=True):
            if job.ran(length, logits_LV[:length]):
                self._leave(job)

    def _decode(self) -> None:
        """Runs one token of every sequence whose prompt is done."""
        jobs = [job for job in self._running() if not job.remaining]
        if not jobs:
            return
        if len(jobs) == 1 and self._run_draft(jobs[0]):
            return
        started = time.perf_counter()
        rows = jobs[-1].row + 1
        ids_B, taking_B = np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
        for job in jobs:
            ids_B[job.row], taking_B[job.row] = job.last, True
        logits_BV: Any = self._slots.token(ids_B, taking_B)
        self._watcher.on_step(rows, len(jobs))
        if len(jobs) == 1 and jobs[0].speculation is not None:
            jobs[0].speculation.ran_one(time.perf_counter() - started)
        for job in jobs:
            if job.continued(logits_BV[job.row]):
                self._leave(job)

    def _run_draft(self, job: Job) -> bool:
        """Runs the last token of a job and a draft behind it; returns True if tokens came of it."""
        room = self._limits.context - int(self._slots.filled[job.row]) - 1
        draft = job.speculation.draft(min(room, job.left - 1)) if job.speculation else []
        if not draft:
            return False
        assert job.speculation is not None
        started = time.perf_counter()
        logits_SV = self._slots.chunk(job.row, np.array([job.last, *draft], np.int64))
        tokens = taken(logits_SV, draft)
        self._slots.filled[job.row] -= 1 + len(draft) - len(tokens)
        job.speculation.ran_draft(len(draft), len(tokens), time.perf_counter() - started)
        self._watcher.on_step(1, 1)
        if any(job.continued(logits_V) for logits_V in logits_SV[: len(tokens)]):
            self._leave(job)
        return bool(tokens)

    def _running(self) -> list[Job]:
        """Jobs that have a row, in the order of rows."""
        return [job for job in self._rows if job is not None]

    def _place(self, job: Job, row: int) -> None:
        job.row = row
        if self._limits.speculate and job.asked.temperature == 0:
            job.speculation = Speculation(job.asked.prompt)
        self._rows[row] = job
        self._slots.filled[row] = 0

    def _leave(self, job: Job) -> None:
        self._rows[job.row] = None
        self._slots.filled[job.row] = 0

    def _fail_all(self) -> None:
        """Ends the jobs in the rows, and those that wait too if the engine stops."""
        for job in self._running():
            self._leave(job)
            job.failed()
        with self._changed:
            left = list(self._waiting) if self._stopping else []
            self._waiting = deque(job for job in self._waiting if job not in left)
        for job in left:
            job.failed()
