"""The documents say what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from moe_export import errors
from moe_export.cli import EXIT_CODES, _parser
from moe_export.scores import SCORES
from moe_export.stages import STAGES
from tools.pages.demo_compare import with_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = next(line for line in README.splitlines() if line.endswith("tools/check"))
    script = (ROOT / ".ci" / "run").read_text().replace("pip install -q ", "pip install ")
    assert command in script


def test_the_readme_runs_recipes_that_exist() -> None:
    for name in re.findall(r"recipes/\w+\.yaml", README):
        assert (ROOT / name).exists()


def test_every_link_within_the_documents_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.rglob("docs/**/*.md"), ROOT / "recipes" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tables_of_the_readme_are_those_of_the_committed_figures() -> None:
    bakeoff = json.loads((ROOT / "docs/results/data/demo_compare.json").read_text())
    assert with_table(README, bakeoff) == README


def test_the_readme_lists_every_command() -> None:
    actions = next(a for a in _parser()._actions if a.dest == "command")
    assert actions.choices is not None
    for command in actions.choices:
        assert f"`moe-export {command}" in README, command


def test_the_architecture_page_names_every_stage() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for stage in STAGES:
        assert stage in page, stage


@pytest.mark.parametrize(
    "kind", [e for e in vars(errors).values() if isinstance(e, type) and hasattr(e, "exit_code")]
)
def test_every_exit_code_is_documented(kind: type[errors.MoeExportError]) -> None:
    assert re.search(rf"\b{kind.exit_code} \S", EXIT_CODES)
    assert re.search(rf"{kind.__name__} +{kind.exit_code} ", errors.__doc__ or "")


def test_every_score_states_its_formula_unit_and_source() -> None:
    for score in SCORES.values():
        assert len(score.formula) > 40, score.name
        assert score.unit, score.name
        assert score.source, score.name


def test_no_document_names_a_path_of_some_machine() -> None:
    for page in [*ROOT.rglob("*.md"), *ROOT.glob("docs/results/data/*.json")]:
        if ".venv" in page.parts or "mut" in page.parts:
            continue
        assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", page.read_text()), page
