"""Threads and sessions at once, and what the process holds in memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.testing.c_library import CLayer
from moe_export.testing.cases import Case, inputs_of
from moe_export.testing.executors import feeds, one_node_model
from moe_export.testing.native_executors import native_session

BUSY = Case("busy", (200, 0, 33, 96), tokens=24, top_k=3, hidden=256)


def run_at_once(jobs: list[Any]) -> list[NDArray[Any]]:
    results: list[NDArray[Any]] = [np.empty(0)] * len(jobs)

    def work(number: int) -> None:
        for _ in range(20):
            results[number] = jobs[number]()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_that_share_a_session_get_the_same_as_alone(library: Path) -> None:
    inputs = inputs_of(BUSY, "float32")
    session = native_session(library, one_node_model(inputs))
    fed = [feeds(inputs) | {"x": inputs.x * np.float32(n + 1)} for n in range(4)]
    alone = [session.run(None, feed)[0] for feed in fed]
    together = run_at_once([lambda feed=feed: session.run(None, feed)[0] for feed in fed])
    for y, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(y, expected)


def test_sessions_at_once_get_the_same_as_alone(library: Path) -> None:
    inputs = inputs_of(BUSY, "float32")
    model = one_node_model(inputs)
    sessions = [native_session(library, model, num_threads=n) for n in (1, 2, 2)]
    alone = sessions[0].run(None, feeds(inputs))[0]
    together = run_at_once(
        [lambda session=session: session.run(None, feeds(inputs))[0] for session in sessions]
    )
    for y in together:
        np.testing.assert_array_equal(y, alone)


HIDDEN, WIDTH = 256, 4096
ONE_TENSOR = HIDDEN * WIDTH


def _resident_bytes(array: NDArray[Any]) -> int:
    """Resident bytes of the mapping that holds the array."""
    start = array.__array_interface__["data"][0]
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= start < high
        elif inside and first == "Rss:":
            return int(line.split()[1]) * 1024
    raise AssertionError("no such mapping")


def _pack(library: Path, flat: NDArray[np.float32]) -> None:
    gate, up, down = flat[: 3 * ONE_TENSOR].reshape(3, ONE_TENSOR)
    CLayer(
        library,
        [gate.reshape(HIDDEN, WIDTH), up.reshape(HIDDEN, WIDTH), down.reshape(WIDTH, HIDDEN)],
        num_experts=1,
        format_name="float32",
        x_dtype="float32",
    )


def _file_of_weights(folder: Path) -> Path:
    path = folder / "weights"
    np.arange(3 * ONE_TENSOR, dtype=np.float32).tofile(path)
    return path


def test_the_pages_of_a_mapped_file_are_given_back(library: Path, tmp_path: Path) -> None:
    weights = np.memmap(_file_of_weights(tmp_path), np.float32, mode="r")
    assert weights.sum(dtype=np.float64) > 0
    assert _resident_bytes(weights) >= weights.nbytes
    _pack(library, weights)
    assert _resident_bytes(weights) <= weights.nbytes // 100
    np.testing.assert_array_equal(weights, np.arange(3 * ONE_TENSOR, dtype=np.float32))


def test_what_was_written_to_a_private_mapping_is_kept(library: Path, tmp_path: Path) -> None:
    weights = np.memmap(_file_of_weights(tmp_path), np.float32, mode="c")
    weights[::5000] = -1
    expected = np.array(weights)
    _pack(library, weights)
    np.testing.assert_array_equal(weights, expected)


def test_memory_that_is_of_no_file_is_kept(library: Path) -> None:
    weights = np.arange(3 * ONE_TENSOR, dtype=np.float32)
    _pack(library, weights)
    np.testing.assert_array_equal(weights, np.arange(3 * ONE_TENSOR, dtype=np.float32))
