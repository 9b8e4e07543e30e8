"""Random nodes under the sanitizers, and the choice of kernels."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from moe_export.testing.native_executors import FASTEST, KERNELS
from tools.cmake import TESTS, build
from tools.trust import sanitizers

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
    # A case has four nodes, and two calls to each that is accepted. Both answers have to be common
    # for the run to mean much.
    assert int(counts[1]) > 2 * CASES
    assert int(counts[2]) > CASES // 5


def test_within_onnx_runtime_the_sanitizers_find_a_fault_and_none_in_nodes(fuzzer: Path) -> None:
    library = sanitizers.sanitized_library(fuzzer.parent)
    sanitizers.assert_finds_a_fault(library)
    for words in (("table", 0, 40), ("hostile", 0, 60)):
        counts, said = sanitizers.in_process(library, FASTEST, *words)
        assert said == ""
        assert counts["run"] > 10


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels are those of x86_64")
def test_a_processor_without_kernels_of_its_own_is_told_that_the_library_may_not_pay(
    fuzzer: Path,
) -> None:
    program = build(TESTS, "choices", fuzzer.parent) / "choices"
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    plain, avx2, avx512, avxvnni = done.stdout.splitlines()
    assert plain.startswith("portable: plain C++, as there are no kernels for this processor")
    assert "faster without the library" in plain
    assert avx2 == "avx2: the fastest that this processor has"
    assert avx512 == "avx512: the fastest that this processor has"
    assert avxvnni == "avxvnni: the fastest that this processor has"


@pytest.mark.skipif("avx512" not in KERNELS, reason="the encoding is AVX-512's")
def test_the_products_of_avxvnni_are_those_of_avx2_to_the_bit(fuzzer: Path) -> None:
    program = build(TESTS, "products", fuzzer.parent) / "products"
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    # Four formats and up to twelve rows.
    assert (done.returncode, done.stdout) == (0, "compared 48\n"), done.stderr
