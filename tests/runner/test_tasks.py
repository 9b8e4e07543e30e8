"""Tests that tasks are checked before the first stage of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_export.artifacts.calibration import CalibrationSummary
from moe_export.cli import main
from moe_export.documents.sources import draw
from moe_export.errors import CalibrationError, RecipeError
from moe_export.recipe import Source, ValidateSettings
from moe_export.runner.tasks import require_tasks
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.small_runs import write_recipe
from tests.helpers.text_models import write_rows

SPEED = {"prompt_tokens": 8, "new_tokens": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with one token per byte and a context of 128 tokens."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tasks"))


def settings(path: Path, rows: list[Any], **sections: Any) -> ValidateSettings:
    write_rows(path, rows)
    task = {"jsonl": str(path), "prompt_field": "q", "answer_field": "a", "items": len(rows)}
    content = {"tasks": [task], "sequence_length": 64, "greedy_tokens": 4, "speed": SPEED}
    return ValidateSettings.model_validate_json(json.dumps(content | sections))


def test_prompts_that_leave_no_answer_are_refused_before_the_first_stage(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"q": "why " * 100, "a": str(number)} for number in range(4)]
    validate = settings(tmp_path / "t.jsonl", rows).model_dump(mode="json", exclude_none=True)
    recipe = write_recipe(tmp_path, model, validate=validate)
    assert main(["run", str(recipe), "--run", str(tmp_path / "run")]) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert "t.jsonl: no prompt of the 4 drawn leaves room for an answer" in line
    assert "has 400 tokens or more, and sequence_length is 64" in line
    assert not list((tmp_path / "run").glob("*/stage.json"))


def test_documents_without_room_for_an_answer_are_dropped_and_told(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.jsonl"
    write_rows(path, [{"q": "a" * (60 + number), "a": "bcd"} for number in range(8)])
    source = Source(jsonl=str(path), prompt_field="q", answer_field="a")
    drawn = draw(source, model, 8, 64, 0, "test")
    assert sorted(sequence.prompt_tokens for sequence in drawn.sequences) == [60, 61, 62, 63]
    assert (drawn.dropped, drawn.truncated) == (4, 3)
    assert "4 documents are left out" in caplog.text
    assert "3 answers are cut" in caplog.text


def test_dropped_documents_stand_in_calibration_json(model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "t", [{"q": "a" * (60 + number), "a": "bcd"} for number in range(8)])
    source = {"jsonl": str(tmp_path / "t"), "prompt_field": "q", "answer_field": "a"}
    calibrate = {"sources": [source, {"demo": "sums"}], "sequences": 16, "sequence_length": 64}
    recipe = write_recipe(tmp_path, model, calibrate=calibrate)
    run = tmp_path / "run"
    assert main(["run", str(recipe), "--run", str(run), "--until", "importance"]) == 0
    summary = CalibrationSummary.load(run / "calibrate")
    assert summary.sequences == 12
    first, second = summary.sources
    assert (first.sequences, first.dropped_documents, first.truncated_sequences) == (4, 4, 3)
    assert (second.sequences, second.dropped_documents, second.bos) == (8, 0, "nobody")


@pytest.mark.parametrize(
    ("row", "sections", "error", "sentence"),
    [
        ({"question": "a", "a": "b"}, {}, CalibrationError, "row 1 has no field 'q'"),
        ({"q": "a", "a": None}, {}, CalibrationError, "row 1: field 'a' is null"),
        (
            {"q": "a" * 100, "a": "b" * 100},
            {"sequence_length": 200},
            CalibrationError,
            "task .*t.jsonl: a document has 200 tokens, the context of the model is 128",
        ),
        (
            {"q": "a" * 60, "a": "b"},
            {"greedy_tokens": 70},
            RecipeError,
            "greedy_tokens is 70, the context of the model is 128, and no prompt .* 59 tokens",
        ),
        (
            {"q": "a", "a": "b"},
            {"speed": {"prompt_tokens": 100, "new_tokens": 29}},
            RecipeError,
            "100 prompt_tokens and 29 new_tokens, the context of the model is 128",
        ),
    ],
)
def test_tasks_that_cannot_be_scored_are_one_sentence(
    model: Path,
    tmp_path: Path,
    row: dict[str, Any],
    sections: dict[str, Any],
    error: type[Exception],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        require_tasks(settings(tmp_path / "t.jsonl", [row], **sections), model, 128)


def test_a_prompt_without_room_is_passed_over_if_another_has_it(
    model: Path, tmp_path: Path
) -> None:
    rows = [{"q": "a" * 60, "a": "b"}, {"q": "a" * 59, "a": "b"}]
    require_tasks(settings(tmp_path / "t.jsonl", rows, greedy_tokens=70), model, 128)
