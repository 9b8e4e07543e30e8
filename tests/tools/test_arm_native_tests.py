"""Tests that ran in emulation are counted, failures are refused, and their numbers have a page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.arm.folder import Emulated
from tools.arm.native_tests import (
    FILES,
    NATIVE,
    NEEDS_MORE,
    copy_of_checkout,
    name_emulated_python,
    passed,
)
from tools.pages import platforms
from tools.pages.page import read_data

CHECKED = {
    "state": "emulated",
    "kernels": "neon",
    "folder": "equal",
    "tests/native/test_codes.py": "72 passed on max",
    "tests/native/test_linear.py": "9 passed on max",
}


def test_the_last_line_of_pytest_has_the_number_of_tests_that_passed() -> None:
    assert passed("....\n72 passed in 83.10s (0:01:23)\n", "a") == "72 passed"
    assert (
        passed("SKIPPED x\n7 passed, 2 skipped, 1 warning in 3.1s\n", "a") == "7 passed, 2 skipped"
    )
    assert passed("9 passed, 63 deselected in 3.1s", "a") == "9 passed"
    for output in (
        "1 failed, 71 passed in 3s\n",
        "1 passed, 1 error in 3s\n",
        "no tests ran in 1s",
        "",
    ):
        with pytest.raises(RuntimeError, match=r"^test_a\.py:"):
            passed(output, "test_a.py")


def test_a_copy_of_the_checkout_has_the_tests_and_no_library_of_this_machine(
    tmp_path: Path,
) -> None:
    copy = copy_of_checkout(tmp_path / "copy")
    assert {path.name for path in (copy / "tests" / "native").glob("test_*.py")} == {
        *FILES,
        *NEEDS_MORE,
    }
    assert (copy / "moe_export" / "op" / "library.py").is_file()
    assert not list(copy.rglob("*.so"))
    assert all((NATIVE / name).is_file() for name in NEEDS_MORE)


def test_python_in_emulation_starts_itself_by_a_script(tmp_path: Path) -> None:
    machine = Emulated("/bin/echo", tmp_path / "system", tmp_path)
    name_emulated_python(machine, "max", tmp_path)
    code = "import sitecustomize, subprocess, sys; subprocess.run([sys.executable, 'a b'])"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    root = tmp_path / "system" / "root"
    assert done.stdout == f"-cpu max -L {root} {root}/usr/bin/python3.11 a b\n"


def test_the_page_of_platforms_has_tests_in_emulation_and_the_readme_the_states() -> None:
    data = read_data("platforms") | {"findings": {"manylinux_2_28_aarch64": CHECKED}}
    page = platforms.markdown(data)
    assert "| manylinux_2_28_aarch64 | emulated | neon | – | – |\n" in page
    assert "| win_amd64 | not built | – | – | – |\n" in page
    assert (
        "\n- `manylinux_2_28_aarch64`, tests of the native library in emulation: test_codes.py 72 "
        "passed on max; test_linear.py 9 passed on max.\n"
    ) in page
    assert platforms.readme_table(data) == (
        "| run | emulated | built |\n|---|---|---|\n| – | Linux arm64 | – |"
    )
