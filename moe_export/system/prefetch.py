"""Results computed ahead by threads, in order and within a limit of memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from moe_export.system.host import usable_cores

AHEAD_BYTES = 128 << 20
"""Bytes of tensors that a stage holds ahead of writing them."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads() -> int:
    """Number of threads for this process: OMP_NUM_THREADS as in torch, or the number of cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else len(usable_cores())


def prefetched(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    size: Callable[[Item], int],
    most: int,
) -> Iterator[Result]:
    """Yields the result of `work` for every item, in order, computed ahead by threads.

    File reads and numpy release the interpreter lock, so that threads suffice.

    Args:
        items: Items, taken as the limit allows.
        work: Function of an item, called in other threads.
        size: Function that gives the size of an item's result, in the unit of `most`.
        most: Limit of the summed sizes of unfinished and waiting results; one may be larger.
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
