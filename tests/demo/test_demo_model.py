"""Tests of the shipped checkpoint: intact, loadable by stock transformers, as good as promised."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen2MoeForCausalLM

from moe_export.demo import checkpoint_dir
from moe_export.demo.tasks import KINDS
from moe_export.demo.tasks import test_items as held_out_items
from tools.train_demo.card import write_card

MODEL = checkpoint_dir()
SCORES = json.loads((MODEL / "scores.json").read_text(encoding="utf-8"))
TARGETS = {"arithmetic": 0.97, "sums": 0.97, "facts": 0.94, "strings": 0.90}
TEXT_TARGET_NATS = 3.5
BOS, EOS, PAD = 0, 0, 1
ITEMS = 40


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    return Qwen2MoeForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def test_the_weights_are_the_ones_the_training_record_names() -> None:
    weights = (MODEL / "model.safetensors").read_bytes()
    training = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))
    assert hashlib.sha256(weights).hexdigest() == training["weights_sha256"]
    assert len(weights) <= 9_000_000


def test_the_weights_carry_the_checkpoint_names_and_float16() -> None:
    with safe_open(MODEL / "model.safetensors", framework="pt") as tensors:
        assert tensors.metadata() == {"format": "pt"}
        names = set(tensors.keys())
        assert all(tensors.get_tensor(name).dtype == torch.float16 for name in names)
    block = "model.layers.{layer}.mlp.experts.{expert}.{matrix}_proj.weight"
    for layer in range(4):
        assert f"model.layers.{layer}.mlp.gate.weight" in names
        assert f"model.layers.{layer}.mlp.shared_expert_gate.weight" in names
        for expert in range(16):
            for matrix in ("gate", "up", "down"):
                assert block.format(layer=layer, expert=expert, matrix=matrix) in names


def test_the_shipped_scores_meet_the_targets() -> None:
    assert set(SCORES) == set(KINDS)
    for kind, target in TARGETS.items():
        assert SCORES[kind]["exact_match"] >= target
    assert SCORES["text"]["loss_nats"] <= TEXT_TARGET_NATS


def test_the_card_is_the_one_its_json_files_give(tmp_path: Path) -> None:
    for name in ("scores.json", "training.json"):
        (tmp_path / name).write_bytes((MODEL / name).read_bytes())
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == (MODEL / "README.md").read_bytes()


def test_encoding_puts_bos_in_front_once(tokenizer: Any) -> None:
    assert tokenizer("12+30=")["input_ids"] == [BOS, *tokenizer.encode("12+30=")[1:]]
    assert tokenizer("12+30=")["input_ids"].count(BOS) == 1
    assert BOS not in tokenizer("12+30=", add_special_tokens=False)["input_ids"]
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (BOS, EOS, PAD)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_document_back(tokenizer: Any, kind: str) -> None:
    for item in held_out_items(kind, 50):
        text = item.prompt + item.answer
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("1234")["input_ids"][1:]) == list("1234")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_greedy_generation_solves_held_out_items_and_stops_by_itself(
    model: Any, tokenizer: Any, kind: str
) -> None:
    items = held_out_items(kind, ITEMS)
    prompts = tokenizer(
        [item.prompt for item in items], padding=True, padding_side="left", return_tensors="pt"
    )
    with torch.inference_mode():
        output = model.generate(**prompts, max_new_tokens=60, do_sample=False)
    generated = output[:, prompts["input_ids"].shape[1] :]
    solved = 0
    for item, row in zip(items, generated.tolist(), strict=True):
        assert EOS in row, f"{item.prompt!r} is answered without an end"
        solved += tokenizer.decode(row[: row.index(EOS)]) == item.answer
    # Three standard deviations of a binomial at the target below its mean.
    target = TARGETS[kind]
    assert solved >= ITEMS * target - 3 * (ITEMS * target * (1 - target)) ** 0.5


@pytest.mark.usefixtures("one_thread")
def test_held_out_text_is_predicted_as_well_as_promised(model: Any, tokenizer: Any) -> None:
    loss_nats, tokens = 0.0, 0
    for item in held_out_items("text", SCORES["text"]["count"]):
        ids = tokenizer(item.answer, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            mean_nats = model(input_ids=ids, labels=ids).loss
        loss_nats += float(mean_nats) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    # The same documents and float16 weights as in scores.json; float32 sums differ by rounding.
    assert loss_nats / tokens == pytest.approx(SCORES["text"]["loss_nats"], abs=1e-4)
