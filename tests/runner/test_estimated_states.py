"""The predicted disk space of the importance stage, held against the check of the collector."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moe_export.demo import checkpoint_dir
from moe_export.families import open_checkpoint
from moe_export.families.axis import Axis
from moe_export.passes.batches import batches_of
from moe_export.recipe import ImportanceSettings
from moe_export.runner.estimate import importance_estimate
from moe_export.scores import SCORES, scores_named
from moe_export.scoring.collector import Collector
from moe_export.scoring.source_weights import SourceWeights
from moe_export.system.progress import silent
from moe_export.system.workers import ALONE

SUBSETS = [*((name,) for name in SCORES), *combinations(SCORES, 2), tuple(SCORES)]
"""Sets of scores: what one needs is added to what another needs, or shared with it."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predicted_bytes_are_those_that_the_collector_asks_for_with_any_set_of_scores(
    dtype: Any,
) -> None:
    spec = open_checkpoint(checkpoint_dir())[1]
    batches = batches_of([np.zeros(16, np.int32)] * 6, 64)
    asked: list[int] = []
    model: Any = SimpleNamespace(
        layers=range(spec.num_layers),
        config=SimpleNamespace(hidden_size=spec.hidden_size),
        dtype=getattr(torch, dtype),
    )
    states: Any = SimpleNamespace(check_space=asked.append)
    one_source = SourceWeights(np.zeros(6, np.int64), np.full(6, 15.0), np.ones(1), np.ones(1))
    predicted = []
    for names in SUBSETS:
        settings = ImportanceSettings(scores=names, dtype=dtype)
        estimate = importance_estimate("importance", settings, spec, 6 * 16)
        predicted.append(estimate.partial_bytes)
        Collector(
            model,
            Axis(spec),
            scores_named(names),
            one_source,
            len(batches),
            dict(enumerate(batches)),
            states,
            Path(),
            ALONE,
            silent,
        ).check_space()
    assert asked == predicted
    state_bytes = 6 * 16 * spec.hidden_size * model.dtype.itemsize
    counts = {spec.num_layers + 1 + 3 * losses for losses in (1, 2, 3)} | {2}
    assert {needed // state_bytes for needed in asked} == counts
