"""Tests of the generated reference pages: they are committed as the code makes them."""

from __future__ import annotations

import pytest
from pydantic import Field

from moe_export.artifacts.base import JsonArtifact, Record
from moe_export.recipe import Recipe, Section
from moe_export.scores import SCORES
from tools.reference import artifacts
from tools.reference.docstrings import described
from tools.reference.pages import PAGES, ROOT
from tools.reference.recipe import recipe_page


class Base(Section):
    """Numbers of a base.

    steps, rate: numbers
                 of training.
    """

    steps: int = 3
    rate: float = Field(default=0.5, gt=0)


class Derived(Base):
    """Numbers and a word: the word is text.

    Attributes:
        word: a word, as in
            `this one`.
    """

    word: str | None = None


class Width(Record):
    """Width of one expert.

    Attributes:
        rows: number of rows.
    """

    rows: int


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_committed_as_the_code_makes_it(name: str) -> None:
    assert (ROOT / name).read_text() == PAGES[name](), "run python -m tools.reference"


def test_a_docstring_is_taken_apart_with_what_its_bases_describe() -> None:
    docstring = described(Derived)
    assert docstring.text == "Numbers and a word: the word is text."
    assert docstring.fields == {
        "steps": "Numbers of training.",
        "rate": "Numbers of training.",
        "word": "A word, as in `this one`.",
    }


def test_the_recipe_page_has_every_key_with_its_default() -> None:
    page = recipe_page()
    for section in Recipe.model_fields.values():
        assert f"\n## {section.alias or 'model'}" in page
    assert "| `group_size` | `32`, `64`, `128` | `32` |" in page
    assert "| `max_logit_error` | number > 0 | `0.0001` |" in page
    assert "| `score` | `auto` or [score](scores.md) | `fisher_margin` |" in page
    assert "| `target_bytes` | integer ≥ 1 |  |" in page


def test_every_key_of_a_recipe_and_every_argument_is_described() -> None:
    for name in ("recipe", "command-line"):
        page = (ROOT / f"docs/reference/{name}.md").read_text()
        assert [line for line in page.splitlines() if line.endswith("|  |")] == []


def test_the_scores_page_has_every_formula() -> None:
    page = (ROOT / "docs/reference/scores.md").read_text()
    for score in SCORES.values():
        assert f"## {score.name}\n" in page
        assert score.formula.strip().splitlines()[0] in page


def test_an_artifact_is_shown_with_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    class Widths(JsonArtifact):
        """Widths of a layer.

        Attributes:
            widths: one record per expert.
        """

        FILE = "widths.json"
        VERSION = 7
        widths: tuple[Width, ...]

    monkeypatch.setattr(artifacts, "artifacts", lambda: [Widths])
    page = artifacts.artifacts_page()
    assert "## widths.json\n\nVersion 7, class `Widths`.\n\nWidths of a layer." in page
    assert "| `widths` | list of `Width` | One record per expert. |" in page
    assert "### Width of widths.json\n\nWidth of one expert." in page
    assert "| `rows` | integer | Number of rows. |" in page
