"""One sequence on its way through the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from moe_export.documents.continuation import Continuation
from moe_export.ort.speculation import Speculation
from moe_export.serve.sampling import Sampler, Score, score
from moe_export.serve.text import StopStrings

Finish: TypeAlias = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Asked:
    """Request for one sequence.

    Attributes:
        prompt: Token ids of the prompt, at least one.
        new_tokens: Largest number of new tokens.
        temperature: Divisor of the logits; 0 takes the most likely token.
        top_p: Share of probability that tokens are drawn from.
        seed: Seed of the draws; None for a random one.
        stops: Strings that end the text.
        alternatives: Number of most likely tokens to score beside each token; None for no scores.
        score_prompt: True if the tokens of the prompt are scored too.
    """

    prompt: list[int]
    new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stops: Sequence[str] = ()
    alternatives: int | None = None
    score_prompt: bool = False


@dataclass(frozen=True)
class Piece:
    """Progress of a sequence.

    Attributes:
        text: New text.
        scores: Scores of new tokens; those of the prompt come before the first new token.
        tokens: Number of new tokens.
        finish: Reason why the sequence ended; None if it goes on.
    """

    text: str = ""
    scores: tuple[Score, ...] = ()
    tokens: int = 0
    finish: Finish | None = None


@dataclass(eq=False)
class Job:
    """State of one sequence.

    Attributes:
        asked: Request.
        eos_ids: Tokens that end the text.
        decode: Function from tokens to their text.
        notify: Function that is called with every piece, in the engine's thread.
        row: Row of the cache; -1 while the job waits.
        done: Number of tokens of the prompt that were run.
        last: Token that was chosen last, and runs next.
        speculation: Drafts of several tokens; None for one token in a step.
        cancelled: True once nobody waits for the rest.
    """

    asked: Asked
    eos_ids: Sequence[int]
    decode: Callable[[list[int]], str]
    notify: Callable[[Piece], None]
    row: int = -1
    done: int = 0
    last: int = 0
    speculation: Speculation | None = None
    cancelled: bool = False
    _made: int = 0
    _prompt_scores: list[Score] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sampler = Sampler(self.asked.temperature, self.asked.top_p, self.asked.seed)
        self._text = Continuation(self.decode, self.asked.prompt)
        self._stops = StopStrings(self.asked.stops)

    @property
    def remaining(self) -> int:
        """Number of tokens of the prompt that were not run yet."""
        return len(self.asked.prompt) - self.done

    @property
    def left(self) -> int:
        """Largest number of tokens that may still follow."""
        return self.asked.new_tokens - self._made

    def ran(self, tokens: int, logits_LV: NDArray[Any]) -> bool:
        """Notes that the next tokens of the prompt were run; returns True if the job has ended.

        Args:
            tokens: Number of tokens that were run.
            logits_LV: Logits of all of them if the prompt is scored, else at least of the last.
        """
        start, self.done = self.done, self.done + tokens
        if self.asked.score_prompt:
            self._score_prompt(start, logits_LV)
        if self.remaining:
            return False
        if self.asked.new_tokens == 0:
            return self._tell(Piece(scores=tuple(self._prompt_scores), finish="length"))
        return self.continued(logits_LV[-1])

    def continued(self, logits_V: NDArray[Any]) -> bool:
        """Takes the logits of the last token; returns True if the job has ended."""
        self.last = self._sampler.choose(logits_V)
        if self.speculation is not None:
            self.speculation.add(self.last)
        self._made += 1
        scores = self._prompt_scores
        self._prompt_scores = []
        if self.asked.alternatives is not None:
            scores = [*scores, score(logits_V, self.last, self.asked.alternatives)]
        finish: Finish | None = None
        if self.last in self.eos_ids:
            finish = "stop"
        elif self._made == self.asked.new_tokens:
            finish = "length"
        text = self._text.add(self.last)
        text = self._stops.add(text + self._text.rest() if finish else text)
        if self._stops.met:
            finish = "stop"
        rest = self._stops.rest() if finish else ""
        return self._tell(Piece(text + rest, tuple(scores), 1, finish))

    def failed(self) -> None:
        """Reports that the job cannot go on."""
        self._tell(Piece(finish="error"))

    def _score_prompt(self, start: int, logits_SV: NDArray[Any]) -> None:
        """Scores the tokens of the prompt that the logits predict."""
        alternatives = self.asked.alternatives or 0
        if start == 0:
            self._prompt_scores.append(Score(self.asked.prompt[0], None, ()))
        for logits_V, token in zip(logits_SV, self.asked.prompt[start + 1 :], strict=False):
            self._prompt_scores.append(score(logits_V, token, alternatives))

    def _tell(self, piece: Piece) -> bool:
        self.notify(piece)
        return piece.finish is not None
