"""Tests of the exported decoder in stock ONNX Runtime against stock transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from moe_export.graph import with_layer_outputs
from moe_export.testing.tiny import masked_checkpoint, pruned_checkpoint, tiny_checkpoint
from tests.helpers.decoding import Decoder, exported

LIMIT = 1e-4
"""Largest absolute error of float32 logits of up to about 15, as the project promises."""

UNEQUAL = ((24, 0, 1, 7, 16, 24), (3, 24, 0, 0, 11, 1), (24, 24, 24, 24, 24, 24))
EMPTY_LAYER = ((0, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 1), (24, 0, 24, 0, 24, 0))


def oracle(checkpoint_dir: Path) -> Any:
    torch.set_num_threads(1)
    model, loading = AutoModelForCausalLM.from_pretrained(
        checkpoint_dir, output_loading_info=True, torch_dtype=torch.float32
    )
    assert not loading["unexpected_keys"]
    return model.eval()


def logits_of(model: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(ids)).logits.numpy()
    return logits


def random_ids(batch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(5).integers(0, 256, (batch, length))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Decoder]:
    directory = tmp_path_factory.mktemp("plain")
    source = tiny_checkpoint(directory / "source")
    return oracle(source), Decoder(exported(source, directory / "onnx"))


@pytest.mark.parametrize(
    ("batch", "past", "new"),
    [(1, 0, 1), (1, 0, 9), (2, 0, 5), (1, 7, 1), (2, 9, 1), (1, 6, 5), (3, 11, 1), (1, 100, 28)],
)
def test_logits_equal_torch_with_and_without_a_cache(
    plain: tuple[Any, Decoder], batch: int, past: int, new: int
) -> None:
    model, decoder = plain
    ids = random_ids(batch, past + new)
    if past:
        decoder.start(ids[:, :past])
        actual = decoder.go_on(ids[:, past:])
    else:
        actual = decoder.start(ids)
    expected = logits_of(model, ids)[:, past:]
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=LIMIT)


def test_a_batch_padded_on_the_right_equals_its_single_sequences(
    plain: tuple[Any, Decoder],
) -> None:
    model, decoder = plain
    ids, lengths = random_ids(2, 9), (9, 5)
    mask = np.array([[1] * 9, [1] * 5 + [0] * 4], dtype=np.int64)
    prompt = np.where(mask == 1, ids, 258)
    actual = [decoder.start(prompt, mask)]
    more = random_ids(2, 3)
    actual += [decoder.go_on(more[:, step : step + 1]) for step in range(3)]
    for row, length in enumerate(lengths):
        whole = np.concatenate([ids[row, :length], more[row]])[None]
        expected = logits_of(model, whole)[0]
        np.testing.assert_allclose(actual[0][row, :length], expected[:length], rtol=0, atol=LIMIT)
        for step in range(3):
            np.testing.assert_allclose(
                actual[1 + step][row, 0], expected[length + step], rtol=0, atol=LIMIT
            )


def test_greedy_decoding_through_the_cache_equals_torch(plain: tuple[Any, Decoder]) -> None:
    model, decoder = plain
    prompt = random_ids(1, 6)
    with torch.no_grad():
        expected = model.generate(
            torch.from_numpy(prompt),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=None,
            attention_mask=torch.ones(1, 6, dtype=torch.int64),
        )
    assert decoder.greedy(prompt, 16) == expected[0, 6:].tolist()


@pytest.mark.parametrize("widths", [UNEQUAL, EMPTY_LAYER], ids=["unequal", "empty_layer"])
def test_removed_dimensions_equal_zeroed_ones(
    tmp_path: Path, widths: tuple[tuple[int, ...], ...]
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    model = oracle(masked_checkpoint(source, tmp_path / "masked", widths))
    pruned = pruned_checkpoint(source, tmp_path / "pruned", widths)
    decoder = Decoder(exported(pruned, tmp_path / "onnx"))
    ids = random_ids(2, 12)
    expected = logits_of(model, ids)
    np.testing.assert_allclose(decoder.start(ids[:, :11]), expected[:, :11], rtol=0, atol=LIMIT)
    np.testing.assert_allclose(decoder.go_on(ids[:, 11:]), expected[:, 11:], rtol=0, atol=LIMIT)
    # The unpruned model's logits differ, so the comparison above can fail.
    assert np.abs(logits_of(oracle(source), ids) - expected).max() > 100 * LIMIT


# Stock transformers models a missing shared expert by width 0, of which torch warns.
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "overrides",
    [
        {"tie_word_embeddings": True},
        {"norm_topk_prob": True},
        {"qkv_bias": False},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"num_experts_per_tok": 6},
        {"num_experts_per_tok": 1},
        {"num_hidden_layers": 1},
        {"shared_expert_intermediate_size": 0},
        {"rope_theta": 1e6, "rms_norm_eps": 1e-3},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_variant_of_the_family_equals_torch(tmp_path: Path, overrides: dict[str, Any]) -> None:
    source = tiny_checkpoint(tmp_path / "source", **overrides)
    decoder = Decoder(exported(source, tmp_path / "onnx"))
    ids = random_ids(1, 10)
    expected = logits_of(oracle(source), ids)
    np.testing.assert_allclose(decoder.start(ids), expected, rtol=0, atol=LIMIT)


@pytest.mark.parametrize("prune", [False, True])
def test_float16_is_close_to_float32(tmp_path: Path, prune: bool) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    if prune:
        source = pruned_checkpoint(source, tmp_path / "pruned", UNEQUAL)
    ids = random_ids(2, 12)
    wide = Decoder(exported(source, tmp_path / "float32")).start(ids)
    decoder = Decoder(exported(source, tmp_path / "float16", "float16"))
    narrow = decoder.start(ids[:, :11])
    assert narrow.dtype == np.float16
    # About 40 tensors are rounded in turn, each by at most 2 ** -11 of its size, and the norms keep
    # the relative size of an early error.
    limit = 40 * 2**-11 * np.abs(wide).max()
    np.testing.assert_allclose(narrow, wide[:, :11], rtol=0, atol=limit)
    np.testing.assert_allclose(decoder.go_on(ids[:, 11:]), wide[:, 11:], rtol=0, atol=limit)


def test_the_residual_stream_after_each_layer_equals_torch(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    directory = exported(source, tmp_path / "onnx")
    ids = random_ids(1, 7)
    with torch.no_grad():
        states = oracle(source)(torch.from_numpy(ids), output_hidden_states=True).hidden_states
    actual = with_layer_outputs(directory, ids[0].tolist())
    assert len(actual) == 3
    for layer in range(2):
        expected = states[layer + 1][0].numpy()
        np.testing.assert_allclose(actual[layer], expected, rtol=0, atol=LIMIT)
