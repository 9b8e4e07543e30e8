"""Choices and first tokens in the report."""

from __future__ import annotations

from moe_export.reporting.tables import accuracy_tables, choice_table
from tests.helpers.report_artifacts import REPORT


def test_choices_and_first_tokens_have_a_table_with_their_errors() -> None:
    table = choice_table(REPORT)
    assert table.head[3:] == ["likeliest choice", "first token", "all tokens"]
    assert table.rows == [["cuda", "sums", "pruned", "97 ± 2 %", "95 ± 3 %", "90 ± 5 %"]]


def test_tasks_without_choices_are_left_out_of_it() -> None:
    (entry,) = REPORT.accuracy
    plain = entry.tasks[0].model_copy(update={"choice_accuracy": None})
    without = entry.model_copy(update={"tasks": (plain,)})
    assert choice_table(REPORT.model_copy(update={"accuracy": (without,)})).rows == []


def test_kl_has_its_error_where_it_is_known() -> None:
    (entry,) = REPORT.accuracy
    assert accuracy_tables(REPORT)["cuda"].rows[0][7] == "0.0200 ± 0.00200"
    unknown = entry.tasks[0].model_copy(update={"kl_nats_stderr": None})
    one = entry.model_copy(update={"tasks": (unknown,)})
    report = REPORT.model_copy(update={"accuracy": (one,)})
    assert accuracy_tables(report)["cuda"].rows[0][7] == "0.0200"
