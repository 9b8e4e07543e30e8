"""Tests of latent attention: vectors in the cache, absorbed or expanded by their number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from moe_export.families import spec_of
from moe_export.families.states import states
from moe_export.graph.genai_config import genai_config
from moe_export.graph.latent_attention import most_absorbed
from moe_export.ort.decoding import StaticCache, open_cache
from moe_export.ort.predicted_memory import kv_cache_bytes
from moe_export.ort.session import OrtModel
from moe_export.serve.slots import Slots
from moe_export.testing.families import DEEPSEEK_V2
from moe_export.testing.tiny import tiny_checkpoint
from tests.family.conftest import stock_model
from tests.helpers.decoding import Decoder, exported

CONFIG = DEEPSEEK_V2.config | {"q_lora_rank": 24}

MANY = most_absorbed(spec_of(CONFIG)) + 1
"""Smallest number of new tokens whose keys and values are expanded."""

IDS = np.random.default_rng(7).integers(0, 256, (3, 60))

LIMIT = 1e-4
"""Largest absolute error of float32 logits."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("latent") / "source", base=CONFIG)


@pytest.fixture(scope="module")
def directory(source: Path) -> Path:
    return exported(source, source.parent / "onnx")


@pytest.fixture(scope="module")
def expected(source: Path) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = stock_model(source)(torch.from_numpy(IDS)).logits.numpy()
    return logits


def near(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=LIMIT)


@pytest.mark.parametrize("parts", [(MANY - 1, 1, MANY, 5), (MANY, MANY - 1, 1, 1, MANY)])
def test_parts_of_a_text_on_both_sides_of_the_limit_equal_torch(
    directory: Path, expected: NDArray[np.float32], parts: tuple[int, ...]
) -> None:
    decoder, start = Decoder(directory), 0
    for length in parts:
        run = decoder.go_on if start else decoder.start
        stop = start + length
        near(run(IDS[:1, start:stop]), expected[:1, start:stop])
        start = stop


@pytest.mark.parametrize("cache", ["growing", "static"])
@pytest.mark.parametrize("longest", [MANY - 1, MANY + 20])
def test_rows_of_unequal_lengths_equal_torch(
    directory: Path, expected: NDArray[np.float32], cache: str, longest: int
) -> None:
    opened = open_cache(OrtModel(directory, threads=1, cache=cache), 3, 60)
    opened.prompt(np.full((3, 50), 99))  # vectors of an earlier text must not be seen
    lengths = np.array([longest, 1, 9])
    ids = np.where(np.arange(longest) < lengths[:, None], IDS[:, :longest], 258)
    rows = np.arange(3)
    near(opened.prompt(ids, lengths), expected[rows, lengths - 1])
    for step in range(4):
        near(opened.token(IDS[rows, lengths + step]), expected[rows, lengths + step])


def test_padding_on_the_left_of_many_tokens_equals_torch(
    directory: Path, expected: NDArray[np.float32]
) -> None:
    decoder, length = Decoder(directory), MANY + 8
    mask = (np.arange(length) >= np.array([0, 8, length - 1])[:, None]).astype(np.int64)
    ids = np.where(mask, np.take_along_axis(IDS, np.maximum(mask.cumsum(1) - 1, 0), 1), 258)
    logits, counts = decoder.start(ids, mask), mask.sum(1)
    for row, count in enumerate(counts):
        near(logits[row, length - count :], expected[row, :count])
    rows = np.arange(3)
    near(decoder.go_on(IDS[rows, counts][:, None])[:, 0], expected[rows, counts])


def test_rows_of_the_server_and_drafts_equal_torch(
    directory: Path, expected: NDArray[np.float32]
) -> None:
    model = OrtModel(directory, threads=1)
    slots = Slots(model, 3, 60)
    slots.prompts(0, IDS[:2, :MANY], np.array([MANY, 4]))
    near(slots.chunk(0, IDS[0, MANY : MANY + 3]), expected[0, MANY : MANY + 3])
    logits = slots.token(IDS[[0, 1], [MANY + 3, 4]], np.array([True, True]))
    near(logits, expected[[0, 1], [MANY + 3, 4]])
    cache = StaticCache(model, 1, 60)
    cache.prompt(IDS[:1, :9])
    near(cache.extend([*IDS[0, 9:11].tolist(), 77])[:2], expected[0, 9:11])
    cache.drop(1)
    near(cache.token(IDS[:1, 11]), expected[:1, 11])


def test_the_cache_has_the_declared_size_in_graph_and_genai_config(directory: Path) -> None:
    spec, model = spec_of(CONFIG), OrtModel(directory, threads=1)
    shapes = {value.name: tuple(value.shape[1:]) for value in model.session.get_inputs()[2:]}
    assert shapes == {s.past: s.shape("past_sequence_length") for s in states(spec)}
    assert (
        model.cache_bytes(2, 40) == 2 * kv_cache_bytes(spec, "float32", 40) == 2 * 40 * 3 * 48 * 4
    )
    decoder = genai_config(spec, CONFIG, {})["model"]["decoder"]
    assert (decoder["num_key_value_heads"], decoder["head_size"]) == (1, 24)


def test_no_key_or_value_is_expanded_for_a_token_of_decoding(directory: Path) -> None:
    graph = onnx.load(directory / "model.onnx", load_external_data=False).graph
    (branch,) = (
        {attribute.name: attribute.g for attribute in node.attribute}
        for node in graph.node
        if node.name == "layers.0.attention.mixed"
    )
    kinds = {name: [node.op_type for node in part.node] for name, part in branch.items()}
    assert "MultiHeadAttention" in kinds["then_branch"]
    assert "MultiHeadAttention" not in kinds["else_branch"]
    weights = [t.name for t in graph.initializer if "kv_b_proj" in t.name and "layers.0" in t.name]
    assert [name.rpartition(".")[2] for name in weights] == ["key", "value"]
