"""Division of a number of documents among sources."""

from __future__ import annotations


def shares(weights: list[float], total: int) -> list[int]:
    """Divides a total by weight with the largest-remainder method; ties go to the earlier.

    >>> shares([1.0, 1.0, 1.0], 8)
    [3, 3, 2]
    """
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    return counts
