"""Questions about an export, with the expected answers as an application prints them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from tools.apps.answers import END, as_lines, demo_answers, demo_ids, demo_prompts


@dataclass(frozen=True)
class Questions:
    """The prompts of the demo's tasks for one export.

    Attributes:
        folder: Folder of the export.
        packed: True if only the operator library can run it.
    """

    folder: Path
    packed: bool

    @cached_property
    def ids(self) -> str:
        """Token ids of the prompts, one line each."""
        return as_lines(self._prompts)

    @cached_property
    def texts(self) -> str:
        """Prompts as JSON strings, one line each."""
        return "".join(f"{json.dumps(prompt)}\n" for prompt in demo_prompts())

    def expected_ids(self, native: bool) -> list[str]:
        """Token ids of our own decoding, with the operator that the application runs."""
        answers = self._native if native or self.packed else self._portable
        return as_lines(answers).splitlines()

    def expected_texts(self) -> list[str]:
        """Answers of our own decoding in the library as JSON strings."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        answers = ([token for token in answer if token != END] for answer in self._native)
        return [json.dumps(tokenizer.decode(answer)) for answer in answers]

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return demo_ids(self.folder)

    @cached_property
    def _native(self) -> list[list[int]]:
        return demo_answers(self.folder, self._prompts, "native")

    @cached_property
    def _portable(self) -> list[list[int]]:
        return demo_answers(self.folder, self._prompts, "portable")
