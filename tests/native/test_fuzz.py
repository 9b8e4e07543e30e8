"""Random nodes under the sanitizers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.cmake import TESTS, build
from tests.native.executors import KERNELS

CASES = 1000


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(TESTS, "fuzz", tmp_path_factory.mktemp("fuzz")) / "fuzz"


@pytest.mark.parametrize("kernel", KERNELS)
def test_random_nodes_are_run_or_refused_under_the_sanitizers(fuzzer: Path, kernel: str) -> None:
    done = subprocess.run(
        [fuzzer, str(CASES), "20"],
        env=os.environ | {"MOE_EXPORT_KERNEL": kernel},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.fullmatch(r"ran (\d+) refused (\d+)\n", done.stdout)
    assert counts is not None, done.stdout
    # Two calls to a case that is accepted; both answers have to be common for the run to mean much.
    assert int(counts[1]) > CASES
    assert int(counts[2]) > CASES // 10
