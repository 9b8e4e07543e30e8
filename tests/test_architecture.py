"""The direction of imports, held against ARCHITECTURE.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from moe_export.stages import STAGES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moe_export"
TORCH_MODULES = (
    *("torch_model", "passes", "fitting", "scoring"),
    *("evaluation.expected", "evaluation.masking", "evaluation.harness.models"),
    *("op.triton.driver", "stages.importance", "stages.ranking", "stages.bakeoff"),
    *(
        "stages.tune",
        "tuning.forward",
        "tuning.packing",
        "tuning.condense",
        "tuning.usage",
        "tuning.esft",
        "tuning.dense_mixer",
        "tuning.state",
        "tuning.train",
        "tuning.whole",
        "tuning.rounding",
        "tuning.optimizer",
        "tuning.by_layer",
        "tuning.layerwise",
        "tuning.layer_documents",
        "tuning.layer_goals",
        "tuning.layer_block",
        "tuning.layer_divergence",
    ),
    *("ranking.passes", "ranking.refits", "ranking.rounds", "ranking.choose"),
    *("testing", "gpu_check", "optimum"),
)
FIGURES = ("reporting.figures",)
HEAVY = ("torch", "transformers", "onnxruntime", "matplotlib", "datasets")

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports_of(tree: ast.Module, top_level_only: bool = False) -> set[str]:
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rows_of_the_picture() -> dict[str, int]:
    """Folder or top-level module to its row in ARCHITECTURE.md, the lowest row being 0."""
    page = (ROOT / "ARCHITECTURE.md").read_text()
    picture = page.split("## Layers")[1].split("```")[1]
    rows = [line[12:].split() for line in picture.strip("\n").splitlines()]
    return {name: level for level, row in enumerate(reversed(rows)) for name in row}


def climbs(module: str, tree: ast.Module, rows: dict[str, int]) -> list[str]:
    """Imports of a module that do not point down in the picture."""
    home = module.split(".", maxsplit=1)[0]
    targets = {
        name.split(".")[1] for name in imports_of(tree) if name.startswith("moe_export.")
    } - {home, "__version__"}
    return sorted(
        f"{module} imports {target}"
        for target in targets
        if target not in rows or rows[home] <= rows[target]
    )


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
def test_imports_between_folders_point_down_in_the_picture(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    assert not climbs(module, tree, rows_of_the_picture())


def test_every_folder_is_in_the_picture_once() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text().split("## Layers")[1].split("```")[1]
    names = [name for line in page.strip("\n").splitlines() for name in line[12:].split()]
    assert sorted(names) == sorted({module.split(".")[0] for module in MODULES} - {"__init__"})


@pytest.mark.parametrize(
    ("module", "planted", "told"),
    [
        ("formats.grid", "from moe_export.op import spec", "formats.grid imports op"),
        ("op.spec", "import moe_export.graph.builder", "op.spec imports graph"),
        (
            "torch_model.load",
            "def f():\n    from moe_export.scores import SCORES",
            "torch_model.load imports scores",
        ),
        ("scores.base", "from moe_export.fitting import refit", "scores.base imports fitting"),
        ("errors", "from moe_export import nowhere", "errors imports nowhere"),
    ],
)
def test_a_planted_import_is_noticed(module: str, planted: str, told: str) -> None:
    tree = ast.parse(MODULES[module].read_text() + "\n" + planted)
    assert climbs(module, tree, rows_of_the_picture()) == [told]


def test_the_top_of_the_package_is_no_heap() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 10


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another_stage(stage: str) -> None:
    for name in imports_of(ast.parse(MODULES[f"stages.{stage}"].read_text())):
        assert not name.startswith("moe_export.stages") or "stages.job" in name, name


@pytest.mark.parametrize("module", MODULES)
def test_torch_and_transformers_are_loaded_only_where_a_model_is_run_in_torch(module: str) -> None:
    if module.startswith((*TORCH_MODULES, *FIGURES)):
        return
    loaded = {
        name.split(".")[0]
        for name in imports_of(ast.parse(MODULES[module].read_text()), top_level_only=True)
    }
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
