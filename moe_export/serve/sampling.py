"""Choice of the next token, and log-probabilities.

Legend: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Score:
    """Token and its log-probability.

    Attributes:
        token: Id of the token.
        logprob: Natural logarithm of its probability at temperature 1; None for the first token of
            a prompt, which nothing predicts.
        best: Ids and log-probabilities of the most likely tokens, best first.
    """

    token: int
    logprob: float | None
    best: tuple[tuple[int, float], ...]


class Sampler:
    """Draw of tokens by one random number each; temperature 0 takes the most likely token.

    Args:
        temperature: Divisor of the logits.
        top_p: Share of probability, above 0 and up to 1; only the most likely tokens that together
            reach it are drawn.
        seed: Seed of the random numbers; equal seeds draw equal tokens. None for a random one.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._random = np.random.default_rng(seed)

    def choose(self, logits_V: NDArray[np.float32]) -> int:
        """The next token."""
        if self._temperature == 0:
            return int(logits_V.argmax())
        logits_V = logits_V.astype(np.float64)
        # The maximum goes first, because a tiny temperature would make the quotients infinite.
        weight_V = np.exp((logits_V - logits_V.max()) / self._temperature)
        order_V = np.argsort(-weight_V, kind="stable")
        total_V = np.cumsum(weight_V[order_V])
        kept = 1 + int(np.searchsorted(total_V, self._top_p * total_V[-1]))
        kept = min(kept, len(total_V))
        drawn = self._random.random() * total_V[kept - 1]
        place = int(np.searchsorted(total_V[:kept], drawn, side="right"))
        return int(order_V[min(place, kept - 1)])


def score(logits_V: NDArray[Any], token: int, alternatives: int) -> Score:
    """Log-probability of a token, and the most likely tokens.

    >>> score(np.array([0.0, 0.0]), token=1, alternatives=1)
    Score(token=1, logprob=-0.6931471805599453, best=((0, -0.6931471805599453),))

    Args:
        logits_V: Logits of the position, in any float dtype.
        token: Id of the token that follows.
        alternatives: Number of most likely tokens to give.
    """
    logits_V = logits_V.astype(np.float64)
    logprobs_V = logits_V - (logits_V.max() + np.log(np.exp(logits_V - logits_V.max()).sum()))
    best = tuple((index, float(logprobs_V[index])) for index in _largest(logprobs_V, alternatives))
    return Score(token, float(logprobs_V[token]), best)


def _largest(values_V: NDArray[np.float64], count: int) -> list[int]:
    """Indices of the largest values, largest first, the lower index first among equals."""
    count = min(count, len(values_V))
    if count == 0:
        return []
    least = np.partition(values_V, -count)[-count]
    chosen = np.flatnonzero(values_V >= least)
    return [int(index) for index in chosen[np.argsort(-values_V[chosen], kind="stable")][:count]]
