"""Several greedy tokens in a step: a draft copied from the text so far, checked by the model.

The draft is what followed the last tokens when they occurred before (prompt lookup). One step runs
the last token and the draft; as many tokens of the draft as the model would have chosen are taken,
and the model's own choice behind them. In float32 the tokens are those of decoding one by one. With
formats of codes they may differ at near ties, because attention adds up several tokens in another
order and activations then round otherwise (docs/log.md).

Legend: S tokens of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

LONGEST, SHORTEST = 3, 2
"""Numbers of last tokens that are looked up, the longest first."""

MOST_DRAFTED = 8
"""Largest number of tokens in a draft."""

FIRST_DRAFTED = 3
"""Number of tokens in the first draft."""

CLEAR = 0.02
"""Least lead of the most likely token, as a share of the range of logits, that is taken from a step
of several tokens. Sums in another order, and activations that round to another int8, change logits
by less; a token with a smaller lead is computed again by itself."""

FIRST_PAUSE, LAST_PAUSE = 16, 256
"""Tokens without drafts once they do not pay; the pause doubles while they still do not."""

MEMORY = 0.75
"""Weight of the past in running means."""


class Lookup:
    """Tokens of a text, and the places behind its sequences of `SHORTEST` to `LONGEST` tokens.

    Args:
        tokens: Token ids so far.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Appends a token."""
        for length in range(SHORTEST, LONGEST + 1):
            if len(self._tokens) >= length:
                self._behind[tuple(self._tokens[-length:])] = len(self._tokens)
        self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """The tokens behind the latest earlier occurrence of the last ones; empty without one.

        >>> Lookup([5, 6, 7, 8, 9, 5, 6]).draft(2)
        [7, 8]
        >>> Lookup([5, 6, 7, 8]).draft(2)
        []

        Args:
            most: Largest number of tokens.
        """
        for length in range(LONGEST, SHORTEST - 1, -1):
            place = self._behind.get(tuple(self._tokens[-length:]))
            if place is not None:
                return self._tokens[place : place + max(most, 0)]
        return []


class Speculation:
    """Drafts for one sequence while they pay, judged by the tokens and the time that steps took.

    Args:
        tokens: Token ids of the prompt.

    Attributes:
        drafted: Number of tokens in all drafts.
        accepted: Number of them that were taken.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._lookup = Lookup(tokens)
        self._most, self._pause, self._waiting = FIRST_DRAFTED, FIRST_PAUSE, 0
        self._single_s: float | None = None
        self._step_s: float | None = None
        self._made = 0.0
        self.drafted = self.accepted = 0

    def add(self, token: int) -> None:
        """Appends a token that was chosen."""
        self._lookup.add(token)

    def draft(self, room: int) -> list[int]:
        """The next draft, of at most `room` tokens; empty if there is none or drafts do not pay."""
        if self._waiting:
            self._waiting -= 1
            return []
        return self._lookup.draft(min(room, self._most))

    def ran_one(self, seconds: float) -> None:
        """Notes the time of a step of one token."""
        self._single_s = _mean(self._single_s, seconds)

    def ran_draft(self, drafted: int, made: int, seconds: float) -> None:
        """Notes the outcome of a step with a draft.

        Args:
            drafted: Number of tokens of the draft.
            made: Number of tokens that the step gave, the model's own included.
            seconds: Time of the step.
        """
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + max(made - 1, 0)
        self._made = made if self._step_s is None else _mean(self._made, made)
        self._step_s = _mean(self._step_s, seconds)
        all_taken = made > drafted
        self._most = min(2 * drafted, MOST_DRAFTED) if all_taken else max(made, SHORTEST)
        if self._single_s is None or self._made * self._single_s >= self._step_s:
            self._pause = FIRST_PAUSE
            return
        self._waiting, self._pause = self._pause, min(2 * self._pause, LAST_PAUSE)
        self._step_s = None  # the next trial is judged by itself


def taken(logits_SV: NDArray[Any], draft: Sequence[int]) -> list[int]:
    """Greedy tokens that a step of the last token and a draft gives.

    Args:
        logits_SV: Logits after the last token and after each token of the draft.
        draft: Token ids, one fewer than S.

    Returns:
        The tokens of the draft that are most likely, and the most likely one behind them; cut off
        before the first whose lead is too small to be sure.
    """
    tokens: list[int] = []
    for logits_V, drafted in zip(logits_SV, [*draft, None], strict=True):
        token = int(logits_V.argmax())
        if not _is_clear(logits_V, token):
            break
        tokens.append(token)
        if token != drafted:
            break
    return tokens


def _is_clear(logits_V: NDArray[Any], token: int) -> bool:
    first = float(logits_V[token])
    second = max(
        float(part.max()) for part in (logits_V[:token], logits_V[token + 1 :]) if len(part)
    )
    return first - second > CLEAR * (first - float(logits_V.min()))


def _mean(past: float | None, value: float) -> float:
    return value if past is None else MEMORY * past + (1 - MEMORY) * value
