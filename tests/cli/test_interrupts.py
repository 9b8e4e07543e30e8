from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator

import pytest

from moe_export.cli import interrupts


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    interrupts.watch()
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


class Callback:
    """Object whose destructor interrupts, where Python drops exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_python_drops_is_heeded_later(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: dropped.append(hook.exc_type))
    interrupts.watch()
    interrupts.heed()
    Callback()
    gc.collect()
    assert dropped == [KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        interrupts.heed()
    interrupts.watch()
    interrupts.heed()
