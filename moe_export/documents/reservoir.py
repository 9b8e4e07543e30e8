"""Random samples of streams of unknown length."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def sampled(items: Iterable[Item], count: int, seed: int) -> tuple[list[Item], int]:
    """Draws items at random from a stream, holding no more than are drawn.

    Every item is drawn with the same probability (algorithm R: J. S. Vitter, "Random sampling with
    a reservoir", 1985).

    Args:
        items: The stream.
        count: Number of items to draw; all are drawn if the stream has fewer.
        seed: Seed of the draw.

    Returns:
        The drawn items in the order of the stream, and the length of the stream.

    >>> sampled("abcdefgh", 3, seed=0)
    (['b', 'f', 'g'], 8)
    """
    draws = random.Random(seed)
    drawn: list[tuple[int, Item]] = []
    total = 0
    for item in items:
        if total < count:
            drawn.append((total, item))
        elif (place := draws.randrange(total + 1)) < count:
            drawn[place] = (total, item)
        total += 1
    return [item for _, item in sorted(drawn, key=lambda pair: pair[0])], total
