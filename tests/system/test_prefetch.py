from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from moe_export.system.prefetch import prefetched, threads


@pytest.fixture(autouse=True)
def _four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")


def test_as_many_threads_as_torch_is_told_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert threads() >= 1


def test_results_come_in_the_order_of_the_items_and_from_several_threads() -> None:
    meeting = threading.Barrier(4, timeout=10)

    def square(number: int) -> int:
        meeting.wait()  # ends only if four are at work at once
        return number * number

    assert list(prefetched(range(40), square, lambda _: 1, 100)) == [n * n for n in range(40)]


def test_no_more_is_made_than_has_room() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def begin(number: int) -> int:
        with lock:
            begun.append(number)
        return number

    sizes = [3, 3, 5, 1, 1, 12, 2]
    for number in prefetched(range(7), begin, sizes.__getitem__, 10):
        with lock:
            waiting = [n for n in begun if n > number]
        assert sum(sizes[n] for n in waiting) <= 10 or len(waiting) == 1


def test_an_error_is_raised_where_its_result_would_come_and_stops_the_rest() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    def fail(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    results = []
    with pytest.raises(ValueError, match="two"):
        results.extend(prefetched(items(), fail, lambda _: 1, 5))
    assert results == [0, 1]
    assert len(taken) < 20
