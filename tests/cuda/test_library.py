"""The library's CUDA side, without a GPU: on a stand-in driver, and on none."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.cuda.checks import ALONE, TOGETHER
from tests.helpers.shared import made_once
from tools.cmake import TESTS, build


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "stand_in", partial(build, TESTS, "cuda")) / "libcuda.so.1"


@pytest.mark.parametrize("check", ["together", *(check.__name__ for check in ALONE)])
def test_on_the_stand_in_driver(library: Path, stand_in: Path, check: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.checks", check, library, stand_in],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = len(TOGETHER) if check == "together" else 1
    assert len(done.stdout.split()) == ran


def test_without_a_driver_the_library_says_so(library: Path) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    message = ctypes.create_string_buffer(1024)
    native = ctypes.CDLL(str(library))
    assert native.moe_export_cuda_describe(message, ctypes.c_size_t(1024)) == 1
    assert message.value.decode() == (
        "libcuda.so.1 cannot be opened: the NVIDIA driver is not installed here; install it, or "
        "run on the CPU"
    )
