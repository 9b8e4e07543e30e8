"""The chat template of a model, rendered by transformers in a process of its own.

A template is a small program that comes with a checkpoint. In its own process it can be ended when
it never does by itself, or takes all memory.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moe_export.documents.fields import Conversation, require_characters
from moe_export.errors import CalibrationError, CheckpointError, MoeExportError

SECONDS = 5.0
"""Processor time for one conversation."""


class ChatTemplate:
    """Chat template of a checkpoint; to be used in a `with` block, which ends its process.

    Args:
        model: Checkpoint directory.
        seconds: Processor time for one conversation, after which its process is ended.

    Raises:
        CheckpointError: The tokenizer's files are damaged.
        CalibrationError: The tokenizer has no chat template.
    """

    def __init__(self, model: Path, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moe_export.documents.render_chat", str(model), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # An interrupt of the terminal ends it through its closed input, without a traceback.
            start_new_session=True,
        )
        opened = self._answer()
        if "error" in opened:
            self.close()
            raise CheckpointError(
                f"{model}: transformers cannot read the tokenizer with its chat template "
                f"({opened['error']}); copy the tokenizer's files again"
            )
        if not opened.get("has_template"):
            self.close()
            raise CalibrationError(
                f"{model}: the tokenizer has no chat template; set chat_template: false"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def render(self, conversation: Conversation, place: str) -> str:
        """Text of a conversation; it ends where the assistant answers if an answer follows.

        Args:
            conversation: Messages and tools.
            place: Source and row, for messages.

        Raises:
            CalibrationError: The template refuses the messages, or does not end.
        """
        request = {
            "messages": conversation.messages,
            "tools": conversation.tools,
            "ask": conversation.answer is not None,
        }
        try:
            line = json.dumps(request).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise CalibrationError(
                f"{place}: the messages hold values that JSON does not have ({error}); remove the "
                "row"
            ) from error
        answer = self._ask(line)
        if "error" in answer:
            raise CalibrationError(
                f"{place}: the chat template refuses the messages ({answer['error']}); correct or "
                "remove the row, or set chat_template: false"
            )
        return require_characters(str(answer["text"]), f"{place}: the rendered chat template")

    def _ask(self, line: bytes) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; how, says its exit code
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        if code == -signal.SIGPROF:
            return {"error": f"it does not end within {self._seconds:g} seconds"}
        raise MoeExportError(
            f"the process that renders the chat template ended with code {code}; run the same "
            "command again"
        )
