"""The table of generated pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tools.reference.artifacts import artifacts_page
from tools.reference.command_line import command_line_page
from tools.reference.families import families_page
from tools.reference.recipe import recipe_page
from tools.reference.report import report_page
from tools.reference.scores import scores_page

ROOT = Path(__file__).parents[2]

PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/recipe.md": recipe_page,
    "docs/reference/scores.md": scores_page,
    "docs/reference/families.md": families_page,
    "docs/reference/command-line.md": command_line_page,
    "docs/reference/artifacts.md": artifacts_page,
    "docs/reference/report.md": report_page,
}
"""Path of each page within the repository, and the function that makes its text."""


def stale() -> list[str]:
    """Paths of the pages whose committed text is not what the code says now."""
    return [
        name
        for name, page in PAGES.items()
        if not (ROOT / name).exists() or (ROOT / name).read_text(encoding="utf-8") != page()
    ]
