"""Verdict on the end of a command: done, refused in a sentence, or one of the bad ends."""

from __future__ import annotations

import re
import signal

from tools.trust.sandbox import MEMORY_BYTES, Outcome

DONE, REFUSED = "done", "refused"
TRACEBACK, CRASH, HANG, MEMORY = "traceback", "crash", "hang", "memory"
SENTENCE, WRONG = "sentence", "silently wrong"
BAD = (TRACEBACK, CRASH, HANG, MEMORY, SENTENCE, WRONG)
"""Ends that must not be."""

MOST_CHARACTERS = 2000
"""Longest sentence of an error."""

WARNING = re.compile(r"WARNING |\[W\d+ |\[rank\d+\]:|\[/")
"""Beginning of a warning of ours, or of a line that torch and gloo log in C++."""

TRACES = ("Traceback (most recent call last)", "Exception ignored", "panicked at", "core dumped")


def verdict(outcome: Outcome) -> str:
    """Returns the verdict on a command, judged by its exit code, its messages and its costs."""
    if outcome.code in (-signal.SIGALRM, -signal.SIGXCPU):
        return HANG
    if outcome.added_bytes > MEMORY_BYTES or "memory ran out" in outcome.err:
        return MEMORY
    if outcome.code < 0:
        return CRASH
    if any(trace in outcome.err for trace in TRACES):
        return TRACEBACK
    if outcome.code == 0:
        return DONE
    return REFUSED if _is_sentence(outcome) else SENTENCE


def _is_sentence(outcome: Outcome) -> bool:
    """True if a refusal has an exit code of its own and ends with one printable line."""
    if not 2 <= outcome.code <= 10:
        return False
    lines = outcome.err.strip("\n").split("\n")
    if outcome.code == 2 and lines[0].startswith("usage: moe-export"):  # of argparse
        return lines[-1].startswith("moe-export") and lines[-1].isprintable()
    others = [line for line in lines[:-1] if not WARNING.match(line)]
    last = lines[-1]
    is_ours = last.startswith("moe-export: ") and len(last) <= MOST_CHARACTERS
    return is_ours and last.isprintable() and not others
