"""Tests of the shipped checkpoints: intact, loadable by stock transformers, as good as promised."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen2MoeForCausalLM

from moe_export.demo import FOLDERS, checkpoint_dir
from moe_export.demo.tasks import KINDS
from moe_export.demo.tasks import test_items as held_out_items
from moe_export.recipe import ModelSettings
from moe_export.reporting.card_source import source_of
from moe_export.runner.source_model import locate
from tools.train_demo.card import write_card
from tools.train_demo.configs import CONFIGS, SETTINGS

MODEL = checkpoint_dir()
TARGETS = {
    "demo": {"arithmetic": 0.97, "sums": 0.97, "facts": 0.94, "strings": 0.90},
    "demo-narrow": {"arithmetic": 0.96, "sums": 0.98, "facts": 0.95, "strings": 0.90},
}
TEXT_TARGET_NATS = {"demo": 3.5, "demo-narrow": 3.7}
FILES = ("config.json", "scores.json", "scores_half.json", "training.json")
BOS, EOS, PAD = 0, 0, 1
ITEMS = 40


def read(name: str, file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((checkpoint_dir(name) / file).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module", params=FOLDERS)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return Qwen2MoeForCausalLM.from_pretrained(checkpoint_dir(name), dtype=torch.float32)


def test_the_weights_are_the_ones_the_training_record_names(name: str) -> None:
    weights = (checkpoint_dir(name) / "model.safetensors").read_bytes()
    training = read(name, "training.json")
    assert hashlib.sha256(weights).hexdigest() == training["weights_sha256"]
    assert training["model"] == name
    assert len(weights) <= 8_000_000


def test_the_weights_carry_the_checkpoint_names_and_float16(name: str) -> None:
    with safe_open(checkpoint_dir(name) / "model.safetensors", framework="pt") as tensors:
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


def test_the_config_is_that_of_the_training_script(name: str) -> None:
    assert read(name, "config.json") == CONFIGS[name]
    assert read(name, "training.json")["settings"] == asdict(SETTINGS[name])


def test_both_models_have_one_tokenizer() -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        first, second = ((checkpoint_dir(name) / file).read_bytes() for name in FOLDERS)
        assert first == second


def test_the_shipped_scores_meet_the_targets(name: str) -> None:
    scores = read(name, "scores.json")
    assert set(scores) == set(KINDS) == set(read(name, "scores_half.json"))
    for kind, target in TARGETS[name].items():
        assert scores[kind]["exact_match"] >= target
    assert scores["text"]["loss_nats"] <= TEXT_TARGET_NATS[name]


def test_half_of_the_experts_per_token_cost_the_narrow_model_more() -> None:
    def lost(name: str) -> float:
        whole, half = read(name, "scores.json"), read(name, "scores_half.json")
        gaps = [whole[kind]["exact_match"] - half[kind]["exact_match"] for kind in TARGETS[name]]
        return sum(gaps) / len(gaps)

    assert lost("demo") < 0.006
    assert lost("demo-narrow") > 0.015


def test_a_recipe_names_each_model(name: str) -> None:
    assert locate(ModelSettings(source=name)) == checkpoint_dir(name)
    assert source_of(checkpoint_dir(name)).name == f"moe-export-{name}"


def test_the_card_is_the_one_its_json_files_give(name: str, tmp_path: Path) -> None:
    for file in FILES:
        (tmp_path / file).write_bytes((checkpoint_dir(name) / file).read_bytes())
    write_card(tmp_path)
    shipped = (checkpoint_dir(name) / "README.md").read_bytes()
    assert (tmp_path / "README.md").read_bytes() == shipped


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
@pytest.mark.parametrize("kind", sorted(TARGETS["demo"]))
def test_greedy_generation_solves_held_out_items_and_stops_by_itself(
    name: str, model: Any, tokenizer: Any, kind: str
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
    target = TARGETS[name][kind]
    assert solved >= ITEMS * target - 3 * (ITEMS * target * (1 - target)) ** 0.5


@pytest.mark.usefixtures("one_thread")
def test_held_out_text_is_predicted_as_well_as_promised(
    name: str, model: Any, tokenizer: Any
) -> None:
    promised = read(name, "scores.json")["text"]
    loss_nats, tokens = 0.0, 0
    for item in held_out_items("text", promised["count"]):
        ids = tokenizer(item.answer, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            mean_nats = model(input_ids=ids, labels=ids).loss
        loss_nats += float(mean_nats) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    # The same documents and float16 weights as in scores.json; float32 sums differ by rounding.
    assert loss_nats / tokens == pytest.approx(promised["loss_nats"], abs=1e-4)
