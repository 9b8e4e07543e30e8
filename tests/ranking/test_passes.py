"""Tests of the measurement on held-out sequences against the whole model in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from moe_export.documents.tokens import TokenSequence
from moe_export.evaluation.masking import ScoredTask, masked, score_tasks
from moe_export.ranking.candidates import planned
from moe_export.ranking.means import SourceMeans
from moe_export.ranking.passes import HeldOutPasses
from moe_export.ranking.refits import Columns
from moe_export.recipe import PlanSettings
from moe_export.torch_model import load_torch_model
from tests.ranking.conftest import PROMPTS, SOURCES, Case

PLAN = PlanSettings(keep=0.4, score="fisher", scope="layer")


def whole(case: Case, columns: dict[str, Any]) -> dict[int, Any]:
    """KL and loss of every source, by masking the model in memory and scoring its logits."""
    candidate = planned(case.checkpoint, case.axis, case.importance, PLAN)
    experts = [range(len(table.widths)) for table in case.axis.tables]
    kept = [[candidate.kept[layer, e] for e in those] for layer, those in enumerate(experts)]
    model, reference = (load_torch_model(case.model, torch.float32) for _ in range(2))
    tokens = case.held_out.sequences.sequences()
    with masked(model, kept, columns):
        return {
            source: score_tasks(
                model,
                {
                    "held out": ScoredTask(
                        has_answers=source == 0,
                        sequences=[
                            TokenSequence(tokens[s].tolist(), PROMPTS[s])
                            for s in range(len(SOURCES))
                            if SOURCES[s] == source
                        ],
                    )
                },
                reference,
            )["held out"]
            for source in (0, 1)
        }


def measured(case: Case, fits: Iterator[Columns] | None) -> Any:
    passes = HeldOutPasses(
        case.model, case.held_out.sequences, np.arange(len(SOURCES)), lambda _: None
    )
    return passes.of_form(planned(case.checkpoint, case.axis, case.importance, PLAN).kept, fits)


def assert_same(case: Case, columns: dict[str, Any], fits: Iterator[Columns] | None) -> None:
    found, expected = measured(case, fits), whole(case, columns)
    for key, value_S in (("kl_nats", found.kl_S), ("loss_nats", found.loss_S)):
        means = SourceMeans.of(value_S, found, 2)
        for source, scores in expected.items():
            # Both are in float32; logits of order 10 have errors of order 1e-6.
            assert abs(means.mean_K[source] - getattr(scores, key)) < 1e-5
            assert abs(means.stderr_K[source] - getattr(scores, f"{key}_stderr")) < 1e-5
    assert found.kl_S.min() > 0.001
    assert [float(found.tokens_S[s]) for s in (0, 4)] == [9 - 4, 20 - 1]


def test_a_masked_candidate_diverges_as_the_masked_model_in_memory(case: Case) -> None:
    assert_same(case, {}, None)


def test_refitted_columns_take_the_place_of_the_kept_ones(case: Case) -> None:
    kept = planned(case.checkpoint, case.axis, case.importance, PLAN).kept
    name = case.axis.spec.name("down", 1, 2)
    columns = {name: 3 * case.checkpoint.read(name)[:, kept[1, 2]]}
    fits: list[Columns] = [{}, columns, {}]
    assert_same(case, columns, iter(fits))
    assert np.abs(measured(case, iter(fits)).kl_S - measured(case, None).kl_S).max() > 1e-4


def test_the_unpruned_model_diverges_from_itself_by_nothing(case: Case) -> None:
    passes = HeldOutPasses(case.model, case.held_out.sequences, np.array([1, 4]), lambda _: None)
    found = passes.unpruned()
    assert found.kl_S.tolist() == [0, 0]
    assert found.source_S.tolist() == [0, 1]
    assert (found.loss_S > 1).all()
