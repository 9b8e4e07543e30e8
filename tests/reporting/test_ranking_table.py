"""The choice of a ranking in the report."""

from __future__ import annotations

from moe_export.artifacts.ranking import Candidate, MeasuredSource, Ranking
from moe_export.reporting.markdown import report_markdown
from moe_export.reporting.ranking_table import ranking_sentence, ranking_table
from moe_export.reporting.report_page import report_html
from tests.helpers.report_artifacts import REPORT


def finalist(score: str, kl_nats: float, excess_nats: float) -> Candidate:
    return Candidate(
        score=score,
        scope="model",
        kept=0.5,
        first_kl_nats=0.1,
        kl_nats=kl_nats,
        kl_nats_stderr=0.02,
        excess_nats=excess_nats,
        excess_nats_stderr=0.01,
        answer_loss_nats=1.5,
        sources=(
            MeasuredSource(source="sums", kl_nats=0.3, kl_nats_stderr=None, loss_nats=1.5),
            MeasuredSource(source="text", kl_nats=0.4, kl_nats_stderr=0.1, loss_nats=2.5),
        ),
    )


RANKING = Ranking(
    choice=finalist("fisher", 0.35, 0.0),
    candidates=(
        Candidate(score="activation", scope="layer", kept=0.5, first_kl_nats=0.9),
        finalist("fisher_margin", 0.5, 0.15),
        finalist("fisher", 0.35, 0.0),
    ),
    refitted=True,
    weights=(0.75, 0.25),
    answered=(True, False),
    first_sequences=8,
    sequences=32,
    scored_tokens=99,
    unpruned_answer_loss_nats=1.25,
)


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
    assert "Choice of the ranking" not in report_markdown(REPORT)
