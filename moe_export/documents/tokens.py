"""Tokenizer of a checkpoint, read from its `tokenizer.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from moe_export.demo.tasks import Document
from moe_export.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class TokenSequence:
    """Token ids of a document.

    Attributes:
        tokens: Token ids of prompt and answer.
        prompt_tokens: Number of tokens of the prompt, BOS included.
        alternatives: The same prompt with each wrong choice; empty unless a choice is asked for.
    """

    tokens: list[int]
    prompt_tokens: int
    alternatives: tuple[TokenSequence, ...] = ()


class TextTokenizer:
    """Tokenizer of a checkpoint directory.

    Raises:
        CheckpointError: `tokenizer.json` is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / TOKENIZER_FILE
        if not path.exists():
            raise CheckpointError(f"{path} is missing; copy it beside the weights")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
        self.eos_ids = _eos_ids(directory)

    def encode(self, document: Document, *, eos: bool = True) -> TokenSequence:
        """BOS (if the tokenizer adds one), prompt, answer, and EOS if there is a prompt.

        Args:
            document: Prompt and answer.
            eos: False to leave out EOS.
        """
        prompt = self._tokenizer.encode(document.prompt).ids
        answer = self._tokenizer.encode(document.answer, add_special_tokens=False).ids
        end = self.eos_ids[:1] if document.prompt and eos else []
        return TokenSequence([*prompt, *answer, *end], len(prompt))

    def encode_prompt(self, text: str) -> list[int]:
        """BOS (if the tokenizer adds one) and the tokens of the text."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Tokens of the text, without special ones."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: list[int]) -> str:
        """Text of the tokens, without special ones."""
        text: str = self._tokenizer.decode(tokens)
        return text


def _eos_ids(directory: Path) -> list[int]:
    """End-of-sequence ids of `generation_config.json`, or else of `config.json`; may be empty."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if not path.exists():
            continue
        try:
            eos: Any = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read as a JSON object ({error})") from error
        if eos is not None:
            return [int(token) for token in (eos if isinstance(eos, list) else [eos])]
    return []
