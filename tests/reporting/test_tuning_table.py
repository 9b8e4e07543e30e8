"""Tests of the report's words about tuning."""

from __future__ import annotations

from moe_export.reporting.markdown import report_markdown
from moe_export.reporting.report_page import report_html
from moe_export.reporting.tuning_table import tuning_facts, tuning_sentence, tuning_table
from tests.helpers.report_artifacts import REPORT
from tests.helpers.report_keys import of_section, paths_of
from tests.helpers.result_artifacts import TUNING


def test_the_sentence_names_method_loss_and_what_is_computed_per_token() -> None:
    plain = TUNING.model_copy(update={"routers": None, "vectors": None, "active_experts": 1})
    assert tuning_sentence(tuning_facts(plain)) == (
        "Tuned by esft: 2 steps over 99 tokens trained 96 parameters. On held-out documents the "
        "loss is 3.00 nats per token, and was 3.50 before. 1 routed expert is computed per token."
    )
    biased = tuning_facts(TUNING.model_copy(update={"vectors": None}))
    assert tuning_sentence(biased).endswith(
        "3 routed experts are computed per token, 1 of them the same for all; the largest bias of "
        "a router is 0.125."
    )
    distilled = TUNING.model_copy(update={"routers": None, "objective": "distill"})
    sentence = tuning_sentence(tuning_facts(distilled))
    assert "the divergence from the source is 3.00 nats per token" in sentence
    assert "whose entries moved by 0.125 from 1 on the average at the input." in sentence


def test_its_keys_are_those_that_are_documented() -> None:
    found = {key for key in paths_of(REPORT.plain()) if key.split(".")[0] == "tuning"}
    assert found == of_section("tuning")


def test_both_renderings_have_the_sources() -> None:
    facts = tuning_facts(TUNING)
    assert tuning_table(facts).rows == [["sums", "8", "2", "3.50", "3.00"]]
    text = report_markdown(REPORT)
    assert "## Tuning" in text
    assert "| sums | 8 | 2 | 3.50 | 3.00 |" in text
    assert "<h2>Tuning</h2>" in report_html(REPORT)
    without = REPORT.model_copy(update={"tuning": None})
    assert "Tuning" not in report_markdown(without)
