"""Tests of the comparison of rankings on a tiny model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_export.artifacts.bakeoff import Bakeoff
from moe_export.artifacts.calibration import CalibrationSource, CalibrationSummary
from moe_export.recipe import BakeoffSettings, PruneSettings, RankingSettings, RefitSettings, Task
from moe_export.stages import bakeoff
from moe_export.stages.job import Job
from tests.ranking.conftest import Case, case  # noqa: F401 - a fixture

SCORES = ("fisher", "fisher_margin")


@pytest.fixture(scope="module")
def results(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Bakeoff:  # noqa: F811
    home = tmp_path_factory.mktemp("bakeoff")
    calibrate, importance, out = (home / name for name in ("calibrate", "importance", "out"))
    for folder in (calibrate, importance, out):
        folder.mkdir()
    case.importance.save(importance)
    # Twenty times the sequences, so that experts have enough tokens for a refit.
    set_, times = case.calibration, 20
    lengths_S = np.tile(np.diff(set_.offsets_S1), times)
    dataclasses.replace(
        set_,
        tokens_N=np.tile(set_.tokens_N, times),
        offsets_S1=np.concatenate([[0], np.cumsum(lengths_S)]),
        prompt_S=np.tile(set_.prompt_S, times),
        source_S=np.tile(set_.source_S, times),
    ).save(calibrate)
    case.held_out.sequences.save(calibrate)
    counts = {"sequences": 1, "tokens": 1, "truncated_sequences": 0, "dropped_documents": 0}
    CalibrationSummary(
        sequences=2,
        tokens=2,
        seed=4,
        sources=tuple(
            CalibrationSource(name=name, tokens_sha256="", weight=None, **counts)
            for name in case.held_out.names
        ),
    ).save(calibrate)
    settings = BakeoffSettings(
        scores=("auto", *SCORES),
        scopes=("model", "layer"),
        refit=(False, True),
        keeps=(0.4,),
        seeds=(4,),
        tasks=(Task(demo="sums", items=3), Task(demo="strings", items=2)),
        ranking=RankingSettings(scores=SCORES, held_out=4, first=2, finalists=4),
        prune=PruneSettings(refit=RefitSettings(ridge=0.1)),
    )
    folders = {"draw-4": importance, "draw-4/calibrate": calibrate}
    bakeoff.run(Job(settings, case.model, folders, out))
    return Bakeoff.load(out)


def test_every_score_is_compared_in_every_scope_masked_and_refitted(results: Bakeoff) -> None:
    rows = [(r.score, r.scope, r.refitted) for r in results.results]
    assert rows[:2] == [("auto", None, None), ("auto", None, True)]
    assert rows[2:] == [
        (score, scope, refitted)
        for score in SCORES
        for scope in (None, "layer")
        for refitted in (None, True)
    ]
    masked, refitted = (
        [r.tasks["sums"].loss_nats for r in results.results if r.refitted is kind]
        for kind in (None, True)
    )
    assert np.abs(np.array(masked) - refitted).min() > 1e-4


def test_auto_has_the_figures_of_its_choice(results: Bakeoff) -> None:
    for auto in results.results[:2]:
        assert auto.choice is not None
        score, scope = auto.choice.split(", ")
        (chosen,) = [
            r
            for r in results.results[2:]
            if (r.score, r.scope or "model", r.refitted) == (score, scope, auto.refitted)
        ]
        assert auto.tasks == chosen.tasks
