"""Bodies of responses, as the OpenAI API has them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from moe_export.documents.tokens import TextTokenizer
from moe_export.serve.job import Piece
from moe_export.serve.sampling import Score


class Answer(Protocol):
    """Form of a response; one object serves one request."""

    def start(self) -> list[dict[str, Any]]:
        """Chunks that come before any token."""

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """Event with the progress of one choice."""

    def whole(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """One choice of a response without events."""

    def head(self, streamed: bool) -> dict[str, Any]:
        """Keys beside the choices."""


@dataclass
class CompletionAnswer:
    """Form of `/v1/completions`.

    Attributes:
        model: Name of the model.
        tokenizer: The model's tokenizer.
        alternatives: Number of most likely tokens beside each token; None for no scores.
        echoed: Text of the prompt of each choice; empty where nothing is echoed.
    """

    model: str
    tokenizer: TextTokenizer
    alternatives: int | None
    echoed: list[str]

    def __post_init__(self) -> None:
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._offsets = [0 for _ in self.echoed]

    def start(self) -> list[dict[str, Any]]:
        """No chunk: the prompt is part of the first piece."""
        return []

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """See `Answer`."""
        return self._choice(index, piece.text, piece.scores, piece.finish)

    def whole(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """See `Answer`."""
        text = "".join(piece.text for piece in pieces)
        scores = [score for piece in pieces for score in piece.scores]
        return self._choice(index, text, scores, pieces[-1].finish)

    def head(self, streamed: bool) -> dict[str, Any]:  # noqa: ARG002 - both forms have one name
        """See `Answer`."""
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self.model,
        }

    def _choice(
        self, index: int, text: str, scores: Sequence[Score], finish: str | None
    ) -> dict[str, Any]:
        text = self.echoed[index] + text
        self.echoed[index] = ""
        scored = None if self.alternatives is None else self._logprobs(index, scores)
        return {"index": index, "text": text, "logprobs": scored, "finish_reason": finish}

    def _logprobs(self, index: int, scores: Sequence[Score]) -> dict[str, Any]:
        tokens = [self.tokenizer.piece(score.token) for score in scores]
        offsets = []
        for score, text in zip(scores, tokens, strict=True):
            offsets.append(self._offsets[index])
            if self.tokenizer.decode([score.token]):  # special tokens are not in the text
                self._offsets[index] += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [self._best(score) for score in scores] if self.alternatives else None,
            "text_offset": offsets,
        }

    def _best(self, score: Score) -> dict[str, float] | None:
        """Most likely tokens and the token itself; among tokens of equal text the likelier."""
        if score.logprob is None:
            return None
        best: dict[str, float] = {}
        for token, logprob in (*score.best, (score.token, score.logprob)):
            best.setdefault(self.tokenizer.piece(token), logprob)
        return best


@dataclass
class ChatAnswer:
    """Form of `/v1/chat/completions`.

    Attributes:
        model: Name of the model.
        tokenizer: The model's tokenizer.
        scored: True if the response has scores.
        choices: Number of choices.
    """

    model: str
    tokenizer: TextTokenizer
    scored: bool
    choices: int
    _id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    _created: int = field(default_factory=lambda: int(time.time()))

    def start(self) -> list[dict[str, Any]]:
        """The role of every choice."""
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for index in range(self.choices)
        ]

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """See `Answer`."""
        delta = {"content": piece.text} if piece.text else {}
        return self._choice(index, {"delta": delta}, piece.scores, piece.finish)

    def whole(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """See `Answer`."""
        text = "".join(piece.text for piece in pieces)
        scores = [score for piece in pieces for score in piece.scores]
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._choice(index, {"message": message}, scores, pieces[-1].finish)

    def head(self, streamed: bool) -> dict[str, Any]:
        """See `Answer`."""
        return {
            "id": self._id,
            "object": "chat.completion.chunk" if streamed else "chat.completion",
            "created": self._created,
            "model": self.model,
        }

    def _choice(
        self, index: int, content: dict[str, Any], scores: Sequence[Score], finish: str | None
    ) -> dict[str, Any]:
        scored = {"content": [self._scored(score) for score in scores], "refusal": None}
        return {
            "index": index,
            **content,
            "logprobs": scored if self.scored else None,
            "finish_reason": finish,
        }

    def _scored(self, score: Score) -> dict[str, Any]:
        best = [self._token(token, logprob) for token, logprob in score.best]
        return self._token(score.token, score.logprob) | {"top_logprobs": best}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self.tokenizer.piece(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """Counts of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }
