"""Whole recipes of the families that `tests/family` takes to no report, some killed and resumed."""

from __future__ import annotations

from pathlib import Path
from random import Random

from moe_export.testing.families import ROWS
from tests.family.test_main_job import ROWS as RUN_THERE
from tests.helpers.campaigns import campaign
from tools.trust.families import STAGES, dealt


def test_every_other_family_runs_to_its_report_and_resumes_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    names = [row.model_type for row in ROWS if row not in RUN_THERE]
    found = campaign(tmp_path, "families", "--kills", "2", "--families", *names)
    assert sorted(found["families"] + found["unknown_to_transformers"]) == sorted(names)
    assert found["kills"] == 2, "a kill came too late"


def test_kills_fall_into_every_stage_before_any_falls_into_one_again() -> None:
    shares = dealt(3, 2 * len(STAGES), Random(5))
    order = [shares[number % 3][number // 3] for number in range(2 * len(STAGES))]
    assert sorted(order[: len(STAGES)]) == sorted(order[len(STAGES) :]) == sorted(STAGES)
