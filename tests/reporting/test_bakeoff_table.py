from __future__ import annotations

from typing import Any

import pytest

from moe_export.artifacts.bakeoff import Bakeoff, RankingResult
from moe_export.artifacts.validation import TaskScores
from moe_export.reporting.bakeoff_table import bakeoff_html, bakeoff_markdown

TASKS = ("sums", "facts", "text")


def scores(exact_match: float | None, loss_nats: float) -> TaskScores:
    return TaskScores(
        items=100,
        answer_tokens=200,
        exact_match=exact_match,
        exact_match_stderr=None,
        loss_nats=loss_nats,
        perplexity=1.0,
    )


def result(
    score: str, seed: int, sums: float, facts: float, text: float, **other: Any
) -> RankingResult:
    fields = {
        "score": score,
        "unit": "dimension",
        "keep": 0.5,
        "kept": 0.5,
        "seed": seed,
        "tasks": {
            "sums": scores(sums, 0.1),
            "facts": scores(facts, 0.2),
            "text": scores(None, text),
        },
        "mean_exact_match": (sums + facts) / 2,
    }
    return RankingResult(**fields | other)


def with_results(bakeoff: Bakeoff, *results: RankingResult) -> Bakeoff:
    return bakeoff.model_copy(update={"results": results})


@pytest.fixture
def bakeoff() -> Bakeoff:
    return Bakeoff(
        tasks=TASKS,
        baseline=result("", 0, 1.0, 0.98, 3.3).tasks,
        results=(
            result("magnitude", 0, 0.30, 0.97, 3.7),
            result("magnitude", 1, 0.30, 0.97, 3.7),
            result("fisher_margin", 0, 1.00, 0.95, 3.35),
            result("fisher_margin", 1, 0.98, 0.96, 3.37),
            result("absgrad", 0, 0.50, 0.20, 3.34, unit="expert", kept=0.5061),
            result("absgrad", 1, 0.52, 0.30, 3.36, unit="expert", kept=0.5061),
        ),
    )


def lines(bakeoff: Bakeoff) -> list[str]:
    return bakeoff_markdown(bakeoff).splitlines()


def test_rankings_stand_in_the_order_of_their_mean_with_the_best_in_bold(
    bakeoff: Bakeoff,
) -> None:
    table = [line for line in lines(bakeoff) if line.startswith("|")]
    assert table == [
        "| ranking | sums, % | facts, % | text, nats | mean, % |",
        "| --- | ---: | ---: | ---: | ---: |",
        (
            "| fisher_margin | **99 [98–100]** | 95.5 [95–96] | 3.36 [3.35–3.37] "
            "| **97.2 [97–97.5]** |"
        ),
        "| magnitude | 30 | **97** | 3.70 | 63.5 |",
        (
            "| absgrad, whole experts | 51 [50–52] | 25 [20–30] "
            "| **3.35 [3.34–3.36]** | 38 [35–41] |"
        ),
        "| unpruned | 100 | 98 | 3.30 | 99 |",
    ]


def test_the_sentence_says_where_another_ranking_wins(bakeoff: Bakeoff) -> None:
    text = bakeoff_markdown(bakeoff)
    assert (
        "Better than fisher_margin here: magnitude on facts (97 % against 95.5 %); "
        "absgrad, whole experts on text (3.3500 nats against 3.3600 nats, within the spread of the "
        "draws)." in text
    )


def test_a_mean_that_is_beaten_is_said_too(bakeoff: Bakeoff) -> None:
    better = [r.model_copy(update={"mean_exact_match": 0.99}) for r in bakeoff.results[:2]]
    beaten = with_results(bakeoff, *better, *bakeoff.results[2:])
    assert "magnitude in the mean (99 % against 97.2 %)" in bakeoff_markdown(beaten)


def test_where_nothing_wins_the_sentence_says_so(bakeoff: Bakeoff) -> None:
    worse = with_results(
        bakeoff, result("random", 0, 0.1, 0.1, 4.0), result("fisher_margin", 0, 0.9, 0.9, 3.4)
    )
    text = bakeoff_markdown(worse)
    assert "No other ranking is better than fisher_margin in any column here." in text


def test_an_exact_tie_is_no_win_and_both_are_bold(bakeoff: Bakeoff) -> None:
    equal = with_results(
        bakeoff, result("activation", 0, 0.9, 0.9, 3.4), result("fisher_margin", 0, 0.9, 0.9, 3.4)
    )
    text = bakeoff_markdown(equal)
    assert "No other ranking is better" in text
    assert text.count("**90**") == 6


def test_rankings_that_keep_more_than_the_others_are_told_of(bakeoff: Bakeoff) -> None:
    words = "Not all of them keep 50 % of the dimensions: absgrad, whole experts 50.6 %."
    assert words in bakeoff_markdown(bakeoff)


def test_a_bakeoff_without_fisher_margin_says_so(bakeoff: Bakeoff) -> None:
    without = with_results(bakeoff, *bakeoff.results[:2])
    assert "fisher_margin is not among the rankings." in bakeoff_markdown(without)


def test_each_keep_has_its_table_the_largest_first(bakeoff: Bakeoff) -> None:
    more = result("fisher_margin", 0, 1.0, 1.0, 3.3, keep=0.75, kept=0.75)
    both = with_results(bakeoff, *bakeoff.results, more)
    heads = [line for line in lines(both) if line.startswith("## ")]
    assert heads == ["## 75 % kept", "## 50 % kept"]


def test_the_page_escapes_names_and_holds_the_same_figures(bakeoff: Bakeoff) -> None:
    named = bakeoff.results[0].model_copy(update={"score": "<script>"})
    page = bakeoff_html(with_results(bakeoff, named, *bakeoff.results[1:]))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<strong>97.2</strong><small>[97–97.5]</small>" in page
