"""Work done ahead of who needs its results, in their order, within a bound of memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads() -> int:
    """How many this process is to use: as torch, what OMP_NUM_THREADS says, or all cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))


def ahead(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    size: Callable[[Item], int],
    most: int,
) -> Iterator[Result]:
    """What `work` gives for every item, in order.

    Reading files and numpy leave the interpreter free, so that threads are enough.

    Args:
        items: are taken as room allows.
        work: called in other threads.
        size: of an item's result, in the unit of `most`.
        most: size of all results that are being made or wait; a single one may be larger.
    """
    waiting: deque[tuple[Future[Result], int]] = deque()
    held = 0
    with ThreadPoolExecutor(threads()) as pool:
        try:
            for item in items:
                cost = size(item)
                while waiting and (held + cost > most or len(waiting) >= 2 * threads()):
                    first, freed = waiting.popleft()
                    held -= freed
                    yield first.result()
                    del first
                waiting.append((pool.submit(work, item), cost))
                held += cost
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()
