"""Text of tokens that follow others, in pieces of whole characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"
"""Character that a tokenizer decodes to while the bytes of a character are not complete."""

CONTEXT_TOKENS = 16
"""Tokens before a new one that decide how it is decoded, such as if it begins with a space."""


class Continuation:
    """Text of a sequence that grows behind a prompt.

    Args:
        decode: Function from tokens to their text, which may drop a space at the beginning.
        prompt: Tokens of the prompt.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._held = ""
        self._begin(list(prompt))

    def add(self, token: int) -> str:
        """Text that a further token completes; may be empty."""
        self._seen.append(token)
        text = self._decode(self._seen)
        if text.endswith(INCOMPLETE):
            self._held = text[len(self._given) :]
            return ""
        piece = text[len(self._given) :]
        self._begin(self._seen)
        return piece

    def rest(self) -> str:
        """Text of an incomplete character at the end, once no more tokens follow."""
        rest, self._held = self._held, ""
        return rest

    def _begin(self, tokens: list[int]) -> None:
        """Keeps so many of the tokens that the next one is not decoded as the first of a text."""
        self._seen, self._held = tokens[-CONTEXT_TOKENS:], ""
        self._given = self._decode(self._seen)
        if not self._given:
            self._seen, self._given = tokens, self._decode(tokens)
