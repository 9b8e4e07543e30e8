"""Sizes of Qwen1.5-MoE-A2.7B, by arithmetic alone, against those that are known of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.pages.sizes import QWEN15_MOE, kept, page, parameters


@pytest.mark.parametrize(("share", "billions"), [(1.0, 14.3158), (0.5, 8.0872)])
def test_parameters_before_and_after_half_of_the_dimensions(share: float, billions: float) -> None:
    assert round(parameters(kept(QWEN15_MOE, share)) / 1e9, 4) == billions


def test_half_of_the_dimensions_are_43_and_a_half_percent_of_the_parameters() -> None:
    before, after = (parameters(kept(QWEN15_MOE, share)) for share in (1.0, 0.5))
    assert round(100 * (before - after) / before, 1) == 43.5


def test_the_page_of_the_documents_is_what_the_command_makes() -> None:
    found = (Path(__file__).parents[2] / "docs" / "results" / "sizes.md").read_text()
    assert found == page("Qwen1.5-MoE-A2.7B", QWEN15_MOE)
