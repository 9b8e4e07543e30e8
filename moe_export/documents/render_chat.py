"""Process that renders a chat template; started by `moe_export.documents.chat`.

`python -m moe_export.documents.render_chat DIRECTORY SECONDS` answers each line of JSON on its
input with one on its output. A request has `messages`, `tools` and `ask`, an answer `text` or
`error`. The first line of output says if the tokenizer has a template.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

MEMORY_BYTES = 1 << 28
"""Memory for one conversation, beside that of the interpreter."""

TEXT_CHARACTERS = 16 << 20
"""Longest text of a conversation."""

REASON_CHARACTERS = 200


class _Clock:
    """Clock for templates that write today's date, so that a run gives the same tokens every day.

    The date is the one that LLaMA's templates write where they are given none.
    """

    @staticmethod
    def now() -> datetime:
        return datetime(2024, 7, 26)


def main() -> None:
    """Opens the tokenizer, then renders until the input ends."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    # Libraries that print must not come between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tokenizer: Any = None

    def opened() -> dict[str, Any]:
        nonlocal tokenizer
        # This class reads every tokenizer.json, and config.json is not needed for it.
        from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - heavy
        from transformers.utils import chat_template_utils  # noqa: PLC0415

        chat_template_utils.datetime = _Clock
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            sys.argv[1], trust_remote_code=False, local_files_only=True
        )
        return {"has_template": tokenizer.chat_template is not None}

    def rendered() -> dict[str, Any]:
        random.seed(0)  # a template may choose at random, but the same in every run
        with _limited_time(float(sys.argv[2])):
            text = tokenizer.apply_chat_template(
                request["messages"],
                tools=request["tools"] or None,
                tokenize=False,
                add_generation_prompt=request["ask"],
            )
        if len(text) > TEXT_CHARACTERS:
            return {"error": f"it makes a text of {len(text)} characters"}
        return {"text": text}

    _write(output, opened)
    _limit_memory()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _write(output, rendered)


def _write(output: Any, work: Callable[[], dict[str, Any]]) -> None:
    try:
        answer = work()
    except MemoryError:
        answer = {"error": "it takes more memory than there is for it"}
    except Exception as error:  # noqa: BLE001 - a template may raise anything; the parent says it
        answer = {"error": _one_line(error)}
    output.write(json.dumps(answer) + "\n")
    output.flush()


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    """Has the system end this process after a processor time, whatever it does then."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    wanted = pages * resource.getpagesize() + MEMORY_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *limits]), hard))


def _one_line(error: Exception) -> str:
    words = f"{type(error).__name__}: {error}".split()
    text = "".join(c if c.isprintable() else "?" for c in " ".join(words))
    return text if len(text) <= REASON_CHARACTERS else f"{text[:REASON_CHARACTERS]}…"


if __name__ == "__main__":
    main()
