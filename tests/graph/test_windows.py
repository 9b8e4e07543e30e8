"""Tests of attention within a window, decoded past its length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_export.families import spec_of
from moe_export.ort.decoding import open_cache
from moe_export.ort.session import OrtModel
from moe_export.testing.families import MIXTRAL
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.decoding import exported

WINDOW = 5

ROWS = ([7, 9, 200, 11, 3, 5, 77, 18], [50, 60, 70])
"""Prompts longer and shorter than the window."""


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_rows_of_unequal_lengths_decode_past_the_window_as_in_torch(
    tmp_path: Path, cache: str
) -> None:
    source = tiny_checkpoint(tmp_path / "source", base=MIXTRAL.config, sliding_window=WINDOW)
    stock = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    model = OrtModel(exported(source, tmp_path / "onnx"), threads=1, cache=cache)
    opened = open_cache(model, len(ROWS), 24)
    rows = [list(row) for row in ROWS]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    logits = opened.prompt(ids, np.array([len(row) for row in rows]))
    for _ in range(WINDOW + 4):
        for row, actual_V in zip(rows, logits, strict=True):
            with torch.no_grad():
                expected_V = stock(torch.tensor([row])).logits[0, -1].numpy()
            np.testing.assert_allclose(actual_V, expected_V, rtol=0, atol=1e-4)
            row.append(int(expected_V.argmax()))
        logits = opened.token(np.array([row[-1] for row in rows]))


def test_a_window_as_long_as_the_context_is_none() -> None:
    positions = MIXTRAL.config["max_position_embeddings"]
    for window, expected in ((positions, 0), (positions - 1, positions - 1)):
        spec = spec_of(MIXTRAL.config | {"sliding_window": window})
        assert spec.windows == (expected,) * 3
