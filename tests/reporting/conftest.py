from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.synthetic_runs import write_report


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with its report; tests only read it."""
    folder = tmp_path_factory.mktemp("runs") / "half"
    write_report(folder, title="Half of it")
    return folder
