from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import moe_export

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = (
    "calibrate.sequences=16",
    "calibrate.sequence_length=128",
    "prune.save_padded=false",
    "export.baseline=false",
    "validate.tasks=[{demo: sums, items: 8}, {demo: text, items: 2}]",
    "validate.sequence_length=128",
    "validate.greedy_tokens=4",
    "validate.speed={batch_sizes: [1], threads: [1], prompt_tokens: 8, new_tokens: 2, repeats: 1}",
    "validate.gates.min_recovery=null",
)
"""Changes that make the demo recipe a matter of seconds."""


def main_of(name: str) -> Callable[..., None]:
    """The function `main` of an example."""
    function: Callable[..., None] = runpy.run_path(str(EXAMPLES / name))["main"]
    return function


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that `run_recipe.py` leaves."""
    directory = tmp_path_factory.mktemp("examples") / "run"
    main_of("run_recipe.py")("recipes/demo_50pct.yaml", str(directory), *SMALL)
    return directory


def test_a_recipe_runs_from_python_and_says_what_it_made(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_of("run_recipe.py")("recipes/demo_50pct.yaml", str(finished), *SMALL)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["calibrate: fresh", "importance: fresh"]
    assert "50% of all expert dimensions are kept, ranked by fisher_margin" in shown
    assert f"open {finished / 'report' / 'report.html'}" in shown
    assert sum(line.startswith("layer ") for line in shown) == 4
    assert any(line.startswith("pruned: mean exact match ") for line in shown)
    assert moe_export.RunResult(finished).report is not None


def test_an_export_runs_in_onnx_runtime_without_moe_export(finished: Path) -> None:
    script = EXAMPLES / "load_in_onnxruntime.py"
    folder = moe_export.RunResult(finished).exports["pruned"]
    prompt = "Q: What is the capital of Norway?\nA:"
    shown = subprocess.run(
        [sys.executable, str(script), str(folder), prompt],
        capture_output=True,
        text=True,
        check=True,
    )
    text = moe_export.generate(folder, prompt, new_tokens=32)
    assert text
    assert shown.stdout == f"{prompt}{text}\n"
    imported = {
        name
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else names_of(node))
    }
    assert not [name for name in imported if name and name.startswith("moe_export")]


def names_of(node: ast.Import) -> list[str]:
    return [alias.name for alias in node.names]


def test_every_example_is_in_the_index() -> None:
    index = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"[{path.name}]({path.name})" in index
