"""Tests of the folders that the workers of a test run share."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.shared import made_once


def test_of_workers_that_ask_at_once_one_makes_the_folder(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    tmp_path_factory.getbasetemp()  # not safe in threads when it is first called
    calls: list[Path] = []

    def make(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.1)
        (folder / "file").write_text("made")

    def ask(_: int) -> str:
        return (made_once(tmp_path_factory, request.node.name, make) / "file").read_text()

    with ThreadPoolExecutor(4) as workers:
        assert list(workers.map(ask, range(4))) == ["made"] * 4
    assert len(calls) == 1


def test_a_folder_that_cannot_be_made_is_an_error_for_each_worker_until_it_can(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("no compiler")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no compiler"):
            made_once(tmp_path_factory, request.node.name, fail)
    assert not list(made_once(tmp_path_factory, request.node.name, lambda folder: None).iterdir())
