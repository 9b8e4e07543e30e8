from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from moe_export.scores import SCORES

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_score.py"
SMALL = ("calibrate.sequences=8", "calibrate.sequence_length=128")


def test_a_score_from_outside_ranks_dimensions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        runpy.run_path(str(EXAMPLE))["main"](str(tmp_path / "run"), *SMALL)
    finally:
        SCORES.pop("absolute_output", None)
    shown = capsys.readouterr().out.splitlines()
    widths = dict(line.split(": ") for line in shown)
    assert len(widths) == 8, "two scores, four layers"
    assert widths["fisher_margin, layer 0"] != widths["absolute_output, layer 0"]
