"""Tests of states of fixed size, such as those of short convolutions, beside keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

import moe_export
from moe_export.errors import RecipeError
from moe_export.families import spec_of
from moe_export.families.states import layer_states, states
from moe_export.graph import with_layer_outputs
from moe_export.ort.decoding import open_cache
from moe_export.ort.predicted_memory import kv_cache_bytes
from moe_export.ort.session import OrtModel
from moe_export.serve.engine import Engine
from moe_export.serve.limits import Limits
from moe_export.stages.export import export_model
from moe_export.testing.families import LFM2_MOE, QWEN3_NEXT, FamilyRow
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.decoding import exported
from tests.helpers.engine import Silent

ROWS = (LFM2_MOE, QWEN3_NEXT)

PROMPTS = ([7, 9, 200, 11, 3, 5, 77, 18], [50], [60, 70])
"""Prompts longer and shorter than a convolution's taps."""


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.model_type)
def row(request: pytest.FixtureRequest) -> FamilyRow:
    found: FamilyRow = request.param
    return found


@pytest.fixture(scope="module")
def source(row: FamilyRow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("states") / "source", base=row.config)


@pytest.fixture(scope="module")
def directory(source: Path) -> Path:
    return exported(source, source.parent / "onnx")


@pytest.fixture(scope="module")
def stock(source: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


def padded() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    ids = np.zeros((len(PROMPTS), lengths.max()), np.int64)
    for number, prompt in enumerate(PROMPTS):
        ids[number, : len(prompt)] = prompt
    return ids, lengths


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_rows_of_unequal_lengths_decode_as_in_torch(
    directory: Path, stock: Any, cache: str
) -> None:
    model = OrtModel(directory, threads=1, cache=cache)
    opened = open_cache(model, len(PROMPTS), 24)
    opened.prompt(np.full((len(PROMPTS), 5), 99))  # states of an earlier text must not stay
    rows = [list(prompt) for prompt in PROMPTS]
    logits = opened.prompt(*padded())
    for _ in range(6):
        for row, actual_V in zip(rows, logits, strict=True):
            with torch.no_grad():
                expected_V = stock(torch.tensor([row])).logits[0, -1].numpy()
            np.testing.assert_allclose(actual_V, expected_V, rtol=0, atol=1e-4)
            row.append(int(expected_V.argmax()))
        logits = opened.token(np.array([row[-1] for row in rows]))


def test_a_graph_has_the_states_that_are_declared_and_predicted(
    row: FamilyRow, directory: Path
) -> None:
    spec, model = spec_of(row.config), OrtModel(directory, threads=1)
    inputs = {value.name: tuple(value.shape[1:]) for value in model.session.get_inputs()[2:]}
    assert inputs == {s.past: s.shape("past_sequence_length") for s in states(spec)}
    assert model.outputs[1:] == [state.present for state in states(spec)]
    kinds = {len(layer_states(spec, layer)) for layer in range(spec.num_layers)}
    assert spec.has_fixed_states
    assert kinds
    assert model.fixed_states == {s.past for s in states(spec) if s.after is None} != set()
    assert model.cache_bytes(1, 40) == kv_cache_bytes(spec, "float32", 40)
    assert model.cache_bytes(3, 40) == 3 * model.cache_bytes(1, 40)


def test_the_residual_stream_after_each_layer_equals_torch(directory: Path, stock: Any) -> None:
    actual = with_layer_outputs(directory, PROMPTS[0])
    with torch.no_grad():
        expected = stock(torch.tensor([PROMPTS[0]]), output_hidden_states=True).hidden_states
    assert len(actual) == 3
    for actual_TD, expected_1TD in zip(actual[:2], expected[1:], strict=False):
        np.testing.assert_allclose(actual_TD, expected_1TD[0], rtol=0, atol=1e-4)


def test_what_would_take_back_tokens_is_refused(
    source: Path, directory: Path, tmp_path: Path
) -> None:
    model, limits = OrtModel(directory, threads=1), Limits(rows=1, context=16, speculate=True)
    with pytest.raises(RecipeError, match=r"--speculate .* state cannot go back"):
        Engine(model, limits, Silent())
    export_model(source, tmp_path / "out", "float32")
    loaded = moe_export.load(tmp_path / "out")
    with pytest.raises(RecipeError, match="state cannot go back; leave it out"):
        loaded.generate("ab", 4, speculate=True)
