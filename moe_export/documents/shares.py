"""Division of a number of documents among sources."""

from __future__ import annotations

from moe_export.recipe import CalibrateSettings


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


def sequence_counts(settings: CalibrateSettings) -> list[int]:
    """Number of sequences of each calibration source: its own, or its share of `sequences`.

    >>> sources = ({"demo": "text"}, {"demo": "sums", "sequences": 9}, {"demo": "facts"})
    >>> sequence_counts(CalibrateSettings(sources=sources, sequences=4))
    [2, 9, 2]
    """
    weights = settings.weights or [1.0] * len(settings.sources)
    given = [source.sequences for source in settings.sources]
    sharing = [weight for weight, own in zip(weights, given, strict=True) if own is None]
    shared = iter(shares(sharing, settings.sequences) if sharing else [])
    return [next(shared) if own is None else own for own in given]
