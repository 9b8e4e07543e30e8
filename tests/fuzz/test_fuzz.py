"""A fixed number of hostile inputs of every kind, and proof that bad ends are told apart."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.helpers.campaigns import campaign
from tools.trust import sandbox
from tools.trust.mutate import change_bytes, change_json
from tools.trust.sandbox import forked
from tools.trust.verdict import (
    BAD,
    CRASH,
    DONE,
    HANG,
    MEMORY,
    REFUSED,
    SENTENCE,
    TRACEBACK,
    verdict,
)

ROOT = Path(__file__).parents[2]
CASES = 60


def test_hostile_inputs_end_well(tmp_path: Path) -> None:
    kinds = campaign(tmp_path, "fuzz", "--cases", str(CASES), "--processes", "2")["kinds"]
    counts = [kind["verdicts"] for kind in kinds.values()]
    assert sum(sum(each.values()) for each in counts) == CASES
    assert not any(set(each) & set(BAD) for each in counts)
    assert len(counts) >= 9
    assert sum(each.get(REFUSED, 0) for each in counts) > CASES / 3
    assert sum(each.get(DONE, 0) for each in counts) > 5


def say(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code


def hold(size_bytes: int) -> int:
    bytearray(size_bytes)
    return 0


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: 0, DONE),
        (lambda: say("moe-export: x.yaml is no recipe; give one", 2), REFUSED),
        (lambda: say("WARNING moe_export: so\nmoe-export: x; y", 6), REFUSED),
        (lambda: say("moe-export: a\x1b[2J; b", 2), SENTENCE),
        (lambda: say("a second line\nmoe-export: a; b", 2), SENTENCE),
        (lambda: say("moe-export: unexpected", 1), SENTENCE),
        (lambda: say("", 7), SENTENCE),
        (lambda: say("thread panicked at 'x'", 0), TRACEBACK),
        (lambda: 1 // 0, TRACEBACK),
        (lambda: ctypes.string_at(0) and 0, CRASH),
        (os.abort, CRASH),
        (lambda: hold(3 << 30), TRACEBACK),  # a MemoryError that nobody handles
        (lambda: say("moe-export: memory ran out in the command run; x", 4), MEMORY),
    ],
)
def test_ends_are_told_apart(call: Callable[[], int], expected: str) -> None:
    outcome = forked(call)
    assert verdict(outcome) == expected, outcome


def test_what_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin() -> int:
        while True:
            pass

    started = time.monotonic()
    assert verdict(forked(lambda: time.sleep(60) or 0, wall_s=0.2)) == HANG
    assert time.monotonic() - started < 30
    monkeypatch.setattr(sandbox, "CPU_S", 1)
    assert verdict(forked(spin)) == HANG


def test_changes_are_drawn_from_their_seed_alone() -> None:
    content = {"a": [1, 2, {"b": "c"}], "d": None}
    for change, given in ((change_json, content), (change_bytes, b"some bytes of a file")):
        first = [change(Random(seed), given) for seed in range(200)]  # type: ignore[operator]
        assert repr(first) == repr([change(Random(seed), given) for seed in range(200)])  # type: ignore[operator]
        assert len({repr(changed) for changed, _ in first}) > 50
    assert content == {"a": [1, 2, {"b": "c"}], "d": None}
