"""`tools/gpu_check` on a machine without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe_export.recipe_file import load_recipe
from tools.gpu_check.parts import PARTS, too_late
from tools.gpu_check.runtime import DEMO_WORDS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/gpu_check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_it_says_in_one_line_what_it_lacks_and_exits_with_3() -> None:
    done = gpu_check("--parts", "conformance", "layers")
    assert done.returncode == 3
    assert done.stdout == (
        "gpu_check: nothing could be run on this machine: torch sees no CUDA device\n"
    )


def test_a_dry_run_tells_of_every_part() -> None:
    done = gpu_check("--dry-run")
    assert done.returncode == 0
    parts = [line.split()[0] for line in done.stdout.splitlines()]
    assert parts == ["conformance", "layers", "model", "onnxruntime", "demo"]
    assert done.stdout.count("cannot run: ") == 5


def test_all_parts_fit_into_a_quarter_of_an_hour_and_none_begins_too_late() -> None:
    minutes = [minutes for _, _, minutes in PARTS.values()]
    assert sum(minutes) <= 14  # a minute is left for starting
    assert too_late("layers", PARTS["layers"][2]) is None
    assert too_late("layers", 3.96) == "it takes about 4 min, and 4.0 are left"


def test_the_demo_recipe_takes_the_words_that_it_is_run_with() -> None:
    recipe = load_recipe(ROOT / "recipes" / "demo_50pct.yaml", DEMO_WORDS)
    assert recipe.validate_.cache_on("cuda") == "captured"
    assert recipe.export.dtype == "float16"
