"""Tests of the choice: the least divergence wins, ties go to the earlier, a broken run resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_export.artifacts.ranking import Ranking
from moe_export.ranking.candidates import candidates_of
from moe_export.ranking.choose import choose_ranking
from moe_export.ranking.passes import HeldOutPasses
from moe_export.recipe import PlanSettings, PruneSettings, RankingSettings, RefitSettings
from tests.ranking.conftest import Case

NAMES = ("fisher_margin", "fisher", "activation")
"""The last two have equal values in the case."""


def settings(**changes: Any) -> RankingSettings:
    base: dict[str, Any] = {
        "scores": NAMES,
        "first": 1,
        "held_out": 4,
        "finalists": 4,
        "plan": PlanSettings(keep=0.4, score="auto"),
        "prune": PruneSettings(refit=False),
    }
    return RankingSettings(**(base | changes))


def choose(case: Case, folder: Path, chosen: RankingSettings) -> Ranking:
    candidates = list(candidates_of(case.checkpoint, case.axis, case.importance, chosen))
    return choose_ranking(case.model, candidates, case.calibration, case.held_out, chosen, folder)


@pytest.fixture(scope="module")
def ranking(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Ranking:
    return choose(case, tmp_path_factory.mktemp("whole"), settings())


def test_the_least_divergence_of_the_finalists_is_taken(ranking: Ranking) -> None:
    assert [(each.score, each.scope) for each in ranking.candidates] == [
        (score, scope) for score in NAMES for scope in ("model", "layer")
    ]
    finalists = [each for each in ranking.candidates if each.kl_nats is not None]
    assert len(finalists) == 4
    assert ranking.choice.kl_nats == min(each.kl_nats or 9 for each in finalists)
    others = [each.first_kl_nats for each in ranking.candidates if each.kl_nats is None]
    assert max(each.first_kl_nats for each in finalists) <= min(others)
    assert ranking.choice.excess_nats == 0
    for each in finalists:
        assert each.excess_nats == pytest.approx(each.kl_nats - ranking.choice.kl_nats)
        assert each.kl_nats == pytest.approx(sum(s.kl_nats for s in each.sources) / 2)
        assert each.answer_loss_nats == each.sources[0].loss_nats
    assert (ranking.first_sequences, ranking.sequences) == (2, 6)
    assert ranking.scored_tokens == 5 + 3 + 4 + 4 + 19 + 15


def test_equal_candidates_go_by_their_order(case: Case, tmp_path: Path) -> None:
    for names in (("fisher", "activation"), ("activation", "fisher")):
        chosen = settings(scores=names, scopes=("model",), finalists=1)
        ranking = choose(case, tmp_path / names[0], chosen)
        assert ranking.choice.score == names[0]
        assert ranking.candidates[0].first_kl_nats == ranking.candidates[1].first_kl_nats


def test_a_broken_choice_resumes_and_ends_with_the_same_figures(
    case: Case, tmp_path: Path, ranking: Ranking, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(limit: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def of_form(self: HeldOutPasses, *arguments: Any) -> Any:
            if len(calls) == limit:
                raise KeyboardInterrupt
            calls.append(0)
            return original(self, *arguments)

        return of_form

    original = HeldOutPasses.of_form
    monkeypatch.setattr(HeldOutPasses, "of_form", counted(8, original))
    with pytest.raises(KeyboardInterrupt):
        choose(case, tmp_path, settings())
    monkeypatch.setattr(HeldOutPasses, "of_form", counted(99, original))
    assert choose(case, tmp_path, settings()) == ranking
    assert len(calls) == 10  # six candidates and four finalists, each measured once


def test_finalists_are_refitted_if_the_plan_will_be(
    case: Case, tmp_path: Path, ranking: Ranking
) -> None:
    chosen = settings(
        scores=("fisher_margin",), prune=PruneSettings(refit=RefitSettings(ridge=0.1)), finalists=2
    )
    refitted = choose(case, tmp_path, chosen)
    assert (refitted.refitted, ranking.refitted) == (True, False)
    for each, masked in zip(refitted.candidates, ranking.candidates, strict=False):
        assert each.first_kl_nats == masked.first_kl_nats
        assert masked.kl_nats is None or abs((each.kl_nats or 0) - masked.kl_nats) > 1e-6
