"""The table of the CUDA kernels follows from the manifest."""

from __future__ import annotations

import json
from pathlib import Path

from moe_export.op.triton.build import CUBINS
from tools.pages.cuda_kernels import PAGE, blocks_per_multiprocessor, page

ROOT = Path(__file__).parents[2]


def test_the_page_of_the_documents_is_what_the_command_makes() -> None:
    manifest = json.loads((CUBINS / "manifest.json").read_text())
    assert (ROOT / PAGE).read_text() == page(manifest)


def test_registers_shared_memory_and_threads_bound_the_blocks() -> None:
    kernel = {"registers": 60, "threads": 128, "shared_bytes": 0}
    # 64 registers, as they are given out by 8, times 128 threads is an eighth of a file.
    assert blocks_per_multiprocessor(80, kernel) == 8
    assert blocks_per_multiprocessor(90, kernel | {"shared_bytes": 37 * 1024}) == 6
    assert blocks_per_multiprocessor(86, kernel | {"registers": 16}) == 12
