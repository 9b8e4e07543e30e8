"""A tiny model with held-out sequences of two sources, and invented scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from moe_export.artifacts.calibration import Calibration, HeldOut
from moe_export.artifacts.importance import Importance
from moe_export.checkpoint import Checkpoint
from moe_export.families import spec_of
from moe_export.families.axis import Axis
from moe_export.ranking.held_out import HeldOutSet
from moe_export.testing.tiny import tiny_checkpoint

LENGTHS = (9, 5, 12, 7, 20, 16)
PROMPTS = (4, 2, 8, 3, 0, 0)
SOURCES = (0, 0, 0, 0, 1, 1)
"""Four sequences with prompts, then two of text."""


@dataclass(frozen=True)
class Case:
    """Files and objects that a choice is made from."""

    model: Path
    checkpoint: Checkpoint
    axis: Axis
    importance: Importance
    calibration: Calibration
    held_out: HeldOutSet


def sequences(kind: type[Calibration], seed: int) -> Calibration:
    generator = np.random.default_rng(seed)
    return kind(
        generator.integers(0, 256, sum(LENGTHS)).astype(np.int32),
        np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64),
        np.array(PROMPTS, np.int32),
        np.array(SOURCES, np.int32),
    )


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = tiny_checkpoint(tmp_path_factory.mktemp("ranking") / "model")
    checkpoint = Checkpoint(model)
    axis = Axis(spec_of(checkpoint.config))
    random = np.random.default_rng(7)
    first, second = ([random.lognormal(0, 2, t.rows) for t in axis.tables] for _ in range(2))
    scores = {"fisher": first, "fisher_margin": second, "activation": first}
    tokens = [np.full(len(table.widths), 9) for table in axis.tables]
    held_out = sequences(HeldOut, 3)
    assert isinstance(held_out, HeldOut)
    return Case(
        model,
        checkpoint,
        axis,
        Importance(scores, tokens),
        sequences(Calibration, 4),
        HeldOutSet(held_out, ("questions", "text")),
    )
