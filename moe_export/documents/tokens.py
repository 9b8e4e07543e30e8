"""Text to tokens with the checkpoint's own `tokenizer.json`."""

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
class Sequence:
    """Token ids of a document, and how many of them, BOS included, are its prompt."""

    tokens: list[int]
    prompt_tokens: int


class TextTokenizer:
    """The tokenizer of a checkpoint directory.

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

    def encode(self, document: Document) -> Sequence:
        """BOS (where the tokenizer adds one), prompt, answer, and EOS if there is a prompt."""
        prompt = self._tokenizer.encode(document.prompt).ids
        answer = self._tokenizer.encode(document.answer, add_special_tokens=False).ids
        end = self.eos_ids[:1] if document.prompt else []
        return Sequence([*prompt, *answer, *end], len(prompt))

    def encode_prompt(self, text: str) -> list[int]:
        """BOS (where the tokenizer adds one) and the text."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def encode_text(self, text: str) -> list[int]:
        """The text alone."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without special ones."""
        text: str = self._tokenizer.decode(tokens)
        return text


def _eos_ids(directory: Path) -> list[int]:
    """End-of-sequence ids of `generation_config.json`, or else of `config.json`; may be none."""
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
