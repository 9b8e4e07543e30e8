"""Tokenizer of a checkpoint, read from its `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from moe_export.demo.tasks import Document
from moe_export.documents.continuation import INCOMPLETE, Continuation
from moe_export.documents.declared_tokens import add_declared
from moe_export.documents.special_tokens import (
    Bos,
    added_around,
    end_ids,
    special_tokens,
    who_adds_bos,
)
from moe_export.errors import CheckpointError
from moe_export.system.published_files import require_content

TOKENIZER_FILE = "tokenizer.json"

HEAD_CHARACTERS, CHARACTERS_PER_TOKEN = 1 << 16, 32
"""A longer document is encoded from its head on: at first this many characters, or this many for
each token that is asked for. The tokenizer takes about 250 bytes of memory for a byte of text."""


@dataclass(frozen=True)
class TokenSequence:
    """Token ids of a document.

    Attributes:
        tokens: Token ids of prompt and answer.
        prompt_tokens: Number of tokens of the prompt, BOS included.
        bos: Origin of the BOS token.
        alternatives: The same prompt with each wrong choice; empty unless a choice is asked for.
    """

    tokens: list[int]
    prompt_tokens: int
    bos: Bos = "nobody"
    alternatives: tuple[TokenSequence, ...] = ()


def load_tokenizer(directory: Path) -> Tokenizer:
    """Reads a tokenizer with the added tokens that files beside it declare.

    Truncation, padding and dropout, which fine-tuning scripts save in `tokenizer.json`, are off:
    they would cut texts, add to them, or split a word in another way each time.

    Raises:
        CheckpointError: `tokenizer.json` is missing, or it or a file beside it is damaged.
    """
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy it beside the weights")
    with _told(path, "is damaged", "copy it again"):
        with path.open(errors="replace") as file:
            require_content(path, file.read(64))
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    with _told(path, "does not take the added tokens of the files beside it", "correct these"):
        add_declared(tokenizer, directory)
    return tokenizer


@contextmanager
def _told(path: Path, what: str, advice: str) -> Iterator[None]:
    """Turns the errors of the tokenizers library, panics of its Rust code too, into sentences."""
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        if isinstance(error, CheckpointError) or not (is_panic or isinstance(error, Exception)):
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} {what} ({reason}); {advice}") from error


class TextTokenizer:
    """Tokenizer of a checkpoint directory.

    Attributes:
        special: Tokens that the tokenizer puts before and after a text.
        eos_ids: End-of-sequence ids, which may be none.

    Raises:
        CheckpointError: `tokenizer.json`, or a file with its special tokens, is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._tokenizer = load_tokenizer(directory)
        self._path = directory / TOKENIZER_FILE
        with _told(self._path, "cannot encode a text", "use the tokenizer of the model"):
            first, last = added_around(self._tokenizer)
        self.special = special_tokens(self._tokenizer, directory, first, last)
        self.eos_ids = end_ids(directory)

    def encode(
        self,
        document: Document,
        *,
        rendered: bool = False,
        limit: int | None = None,
        eos: bool = True,
    ) -> TokenSequence:
        """Encodes prompt and answer together, with each special token once.

        A token with characters of both belongs to the answer. A prompt with an answer ends with
        EOS, a text alone with the tokens that the tokenizer adds.

        Args:
            document: Prompt and answer; the prompt is empty for a text alone.
            rendered: True if a chat template has written the special tokens already.
            limit: Number of tokens that is asked for; of a long document that has more, only the
                head is encoded, but always more than `limit` tokens. None for all.
            eos: False to leave out EOS after an answer.
        """
        ids, ends = self._head(document.prompt + document.answer, limit)
        first, bos = who_adds_bos(ids, self.special, rendered)
        boundary = len(document.prompt)
        inside = next((at for at, end in enumerate(ends) if end > boundary), len(ids))
        last = () if rendered else self.special.last
        if document.prompt:
            last = tuple(self.eos_ids[:1]) if eos else ()
        if ids[len(ids) - len(last) :] == list(last):
            last = ()
        prompt_tokens = len(first) + (inside if document.prompt else 0)
        return TokenSequence([*first, *ids, *last], prompt_tokens, bos)

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of the text, after BOS if the tokenizer adds it and the text does not have it."""
        ids = self.encode_text(text)
        first, _ = who_adds_bos(ids, self.special, rendered=False)
        return [*first, *ids]

    def encode_text(self, text: str, before: str = "") -> list[int]:
        """Tokens of the text, without special ones.

        Args:
            text: Text to encode.
            before: Text in front of it, whose own tokens are left out.
        """
        ids, ends = self._encoded(before + text)
        return ids[next((at for at, end in enumerate(ends) if end > len(before)), len(ids)) :]

    def decode(self, tokens: list[int]) -> str:
        """Text of the tokens, without special ones.

        Many tokenizers drop a space at the beginning; `continuation` keeps it.
        """
        with _told(self._path, "cannot decode tokens", "use the tokenizer of the model"):
            text: str = self._tokenizer.decode(tokens)
        return text

    def piece(self, token: int) -> str:
        """Text of one token after others; its name if it is special or a part of a character."""
        before = self.encode_text("a")  # some tokenizers strip the space before the first token
        text: str = self._tokenizer.decode([*before, token], skip_special_tokens=False)
        text = text.removeprefix(self.decode(before))
        if text and INCOMPLETE not in text:
            return text
        return str(self._tokenizer.id_to_token(token) or f"<{token}>")

    def continuation(self, prompt: list[int], tokens: Iterable[int]) -> Iterator[str]:
        """Yields the text of tokens that follow a prompt, in pieces of whole characters.

        Args:
            prompt: Token ids of the prompt.
            tokens: Token ids that follow.
        """
        text = Continuation(self.decode, prompt)
        for token in tokens:
            piece = text.add(token)
            if piece:
                yield piece
        rest = text.rest()
        if rest:
            yield rest

    def _head(self, text: str, limit: int | None) -> tuple[list[int], list[int]]:
        """Ids and ends of the whole text, or of a head of it that has more than `limit` tokens."""
        if limit is None:
            return self._encoded(text)
        characters = max(HEAD_CHARACTERS, CHARACTERS_PER_TOKEN * limit)
        while characters < len(text):
            cut = text.rfind(" ", characters // 2, characters)
            ids, ends = self._encoded(text[: cut if cut > 0 else characters])
            if len(ids) > limit:
                return ids, ends
            characters *= 4
        return self._encoded(text)

    def _encoded(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids, and the character of the text after each token."""
        with _told(self._path, "cannot encode a text", "use the tokenizer of the model"):
            encoding: Any = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]
