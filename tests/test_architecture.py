"""The direction of imports, held against ARCHITECTURE.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from moe_export.stages import STAGES

PACKAGE = Path(__file__).parents[1] / "moe_export"
SHELL = {"cli", "runner", "__main__", "testing", "gpu_check"}
TORCH_MODULES = (
    *("torch_model", "passes", "fitting", "scoring"),
    *("evaluation.expected", "evaluation.masking"),
    *("op.triton.driver", "stages.importance", "stages.bakeoff"),
)
FIGURES = ("reporting.figures",)
HEAVY = ("torch", "transformers", "onnxruntime", "matplotlib", "datasets")

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    return {
        name.removeprefix("moe_export.")
        for name in imports_of(path)
        if name.startswith("moe_export.")
    }


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another_stage_or_the_shell(stage: str) -> None:
    for name in own_imports(MODULES[f"stages.{stage}"]):
        assert not name.startswith("stages") or name.startswith("stages.job"), name
        assert name.split(".")[0] not in SHELL, f"{stage} imports {name}"


@pytest.mark.parametrize(
    "module",
    [m for m in MODULES if m and m.split(".")[0] not in {*SHELL, "stages", "__init__"}],
)
def test_facts_know_no_stage_and_no_shell(module: str) -> None:
    for name in own_imports(MODULES[module]):
        assert not name.startswith("stages"), f"{module} imports {name}"
        assert name.split(".")[0] not in SHELL, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_torch_and_transformers_are_loaded_only_where_a_model_is_run_in_torch(module: str) -> None:
    if module.startswith((*TORCH_MODULES, *FIGURES)):
        return
    loaded = {name.split(".")[0] for name in imports_of(MODULES[module], top_level_only=True)}
    assert not loaded & set(HEAVY), f"{module} loads {loaded & set(HEAVY)} when imported"


@pytest.mark.parametrize("arguments", [["-c", "import moe_export"], ["-m", "moe_export", "--help"]])
def test_importing_and_help_load_nothing_heavy(arguments: list[str]) -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in shown.stderr.splitlines() if "|" in line}
    assert "moe_export" in loaded
    assert not loaded & {*HEAVY, "numpy", "onnx", "onnx_ir", "pydantic", "rich", "safetensors"}


def test_every_stage_has_a_module_and_every_module_a_stage() -> None:
    modules = {name.removeprefix("stages.") for name in MODULES if name.startswith("stages.")}
    assert modules - {"job"} == STAGES.keys()
