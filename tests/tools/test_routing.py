"""Tests of the comparison of an exported model with torch under torch's choice of experts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_export.testing.families import QWEN3_5_MOE_TEXT
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.decoding import exported
from tools.routing import run_exported, run_torch

SEQUENCES = [[7, 9, 200, 11, 3], [50, 60, 70]]


def test_experts_given_as_an_input_replace_those_of_the_router(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source", base=QWEN3_5_MOE_TEXT.config)
    directory = exported(source, tmp_path / "onnx")
    expected, own = run_torch(source, SEQUENCES), run_exported(directory, SEQUENCES)
    for layer, chosen_TK in expected.chosen.items():
        np.testing.assert_array_equal(own.chosen[layer], chosen_TK)
    given = run_exported(directory, SEQUENCES, expected.chosen)
    np.testing.assert_allclose(given.logits_TV, expected.logits_TV, rtol=0, atol=1e-4)
    others = {layer: (chosen_TK + 1) % 6 for layer, chosen_TK in expected.chosen.items()}
    changed = run_exported(directory, SEQUENCES, others)
    assert np.abs(changed.logits_TV - expected.logits_TV).max() > 1e-2
