"""The choice of a ranking in the report."""

from __future__ import annotations

from moe_export.artifacts.ranking import Candidate
from moe_export.reporting.markdown import report_markdown
from moe_export.reporting.ranking_table import ranking_sentence, ranking_table
from moe_export.reporting.report_page import report_html
from tests.helpers.report_artifacts import RANKING as TWO
from tests.helpers.report_artifacts import REPORT

EARLY = Candidate(score="activation", scope="layer", kept=0.5, first_kl_nats=0.9, sources=())
RANKING = TWO.model_copy(update={"candidates": (EARLY, *TWO.candidates)})


def test_finalists_come_first_and_the_choice_is_bold() -> None:
    table = ranking_table(RANKING)
    assert table.head[-2:] == ["KL sums", "KL text"]
    assert table.rows == [
        ["fisher", "model", "0.100", "0.350 ± 0.020", "–", "1.50", "0.300", "0.400"],
        ["fisher_margin", "model", "0.100", "0.500 ± 0.020", "0.150 ± 0.010", "1.50", "0.300",
         "0.400"],
        ["activation", "layer", "0.900", "–", "–", "–", "–", "–"],
    ]  # fmt: skip
    assert table.strong == {(0, 0), (0, 3)}


def test_the_report_says_what_the_choice_rests_on() -> None:
    assert ranking_sentence(RANKING) == (
        "plan.score is auto: of 3 rankings, fisher over the whole model has the least KL from the "
        "unpruned model. All were masked on 8 held-out sequences, the best 2 refitted on 32, with "
        "sources weighed 0.75 : 0.25; nats per scored token, answers alone where a source has "
        "prompts. The loss on answers of the unpruned model is 1.25."
    )
    report = REPORT.model_copy(update={"ranking": RANKING})
    for text in (report_markdown(report), report_html(report)):
        assert "of 3 rankings, fisher over the whole model" in text
        assert "0.150 ± 0.010" in text
    without = REPORT.model_copy(update={"ranking": None})
    assert "Choice of the ranking" not in report_markdown(without)
