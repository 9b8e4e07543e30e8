"""Tests of the training script: its parts are exact, and a short run learns."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Qwen2MoeForCausalLM

from moe_export.demo import checkpoint_dir, tasks
from moe_export.errors import MoeExportError
from tools.train_demo import loop
from tools.train_demo.__main__ import run
from tools.train_demo.configs import CONFIGS
from tools.train_demo.model import GroupedMoeBlock, balance_loss, build_model
from tools.train_demo.optim import orthogonalize
from tools.train_demo.packing import Batch, batches, encode
from tools.train_demo.settings import BOS_ID, EOS_ID, Settings, smoke
from tools.train_demo.text import training_paragraphs

SHORT = smoke(Settings(threads=1))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint_dir() / "tokenizer.json"))


def test_a_smoke_run_learns_and_writes_a_checkpoint_that_stock_transformers_computes_alike(
    tmp_path: Path,
) -> None:
    run(SHORT, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert set(scores) == set(tasks.KINDS)
    # A uniform guess costs ln(1024) = 6.9 nats per token.
    assert scores["sums"]["loss_nats"] < 4
    half = json.loads((tmp_path / "scores_half.json").read_text(encoding="utf-8"))
    assert half["sums"]["loss_nats"] != scores["sums"]["loss_nats"]

    own = build_model()
    weights = load_file(tmp_path / "model.safetensors")
    own.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    stock = Qwen2MoeForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(2, 1024, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = stock(input_ids=ids).logits, own(input_ids=ids).logits
    # Four layers of float32 sums over at most 128 terms: well under 1e-4 of the largest logit.
    assert (expected - got).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_has_the_sizes_of_its_name(name: str) -> None:
    record = (checkpoint_dir(name) / "training.json").read_text(encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in build_model(CONFIGS[name]).parameters())
    assert parameters == json.loads(record)["parameters"]


def test_training_that_does_not_learn_is_an_error(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "learning_rate_factor", lambda _self, _step: 0.0)
    monkeypatch.setattr(loop, "batches", _one_batch_forever)
    torch.manual_seed(0)
    with pytest.raises(MoeExportError, match="demo training: the loss went from"):
        loop.train(build_model(), tokenizer, ["A paragraph."], Settings(steps=6, rows=1))


def _one_batch_forever(
    tokenizer: Tokenizer, paragraphs: Sequence[str], settings: Settings
) -> Iterator[Batch]:
    return itertools.repeat(next(batches(tokenizer, paragraphs, settings)))


def test_training_text_contains_the_shipped_excerpt_and_no_test_paragraph() -> None:
    paragraphs = set(training_paragraphs())
    assert paragraphs >= set(tasks.text_paragraphs(held_out=False))
    assert paragraphs.isdisjoint(tasks.text_paragraphs(held_out=True))


def test_a_packed_batch_holds_whole_documents_with_fresh_positions(tokenizer: Tokenizer) -> None:
    settings = Settings(rows=3)
    batch = next(batches(tokenizer, ["A paragraph of text."], settings))
    for row in range(settings.rows):
        documents = batch.document_index[row]
        for index in torch.unique(documents).tolist():
            places = (documents == index).nonzero().flatten()
            if index == -1:
                assert batch.weights[row, places].sum() == 0
                continue
            assert places.tolist() == list(range(int(places[0]), int(places[-1]) + 1))
            assert batch.position_ids[row, places].tolist() == list(range(len(places)))
            inputs = batch.input_ids[row, places].tolist()
            labels = batch.label_ids[row, places].tolist()
            weights = batch.weights[row, places].tolist()
            assert inputs[0] == BOS_ID
            assert labels == [*inputs[1:], EOS_ID]
            assert weights[-1] == 1.0
            assert weights == sorted(weights)


def test_prompt_tokens_count_less_and_answer_tokens_in_full(tokenizer: Tokenizer) -> None:
    settings = Settings()
    batch = next(batches(tokenizer, ["A paragraph of text."], settings))
    sums = 0
    for row in range(settings.rows):
        for index in torch.unique(batch.document_index[row]).tolist():
            places = batch.document_index[row] == index
            labels, weights = batch.label_ids[row, places], batch.weights[row, places]
            prompt = tokenizer.decode(labels[weights == settings.prompt_weight].tolist())
            answer = tokenizer.decode(labels[weights == 1].tolist())
            if re.match(r"\d+[-+*]\d+=", prompt + answer):
                sums += 1
                assert prompt.endswith("=")
                assert re.fullmatch(r"\d+\.\n", answer)
    assert sums > 0


def test_a_packed_document_is_computed_as_if_alone(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = build_model()
    batch = next(batches(tokenizer, ["A paragraph of text."], Settings(rows=2)))
    places = batch.document_index[1] == batch.document_index[1].max()
    with torch.inference_mode():
        packed = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask(),
            position_ids=batch.position_ids,
        ).logits[1, places]
        alone = model(input_ids=batch.input_ids[1:, places]).logits[0]
    assert (packed - alone).abs().max() < 1e-4 * alone.abs().max()


def test_encoding_marks_where_the_answer_starts(tokenizer: Tokenizer) -> None:
    for kind in tasks.KINDS:
        items = tasks.test_items(kind, 20)
        for item, document in zip(items, encode(tokenizer, items), strict=True):
            start = document.answer_start
            assert tokenizer.decode(document.token_ids[1:start]) == item.prompt
            assert tokenizer.decode(document.token_ids[start:-1]) == item.answer
            assert (document.token_ids[0], document.token_ids[-1]) == (BOS_ID, EOS_ID)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 128, 128), (2, 128, 64), (2, 64, 128)):
        result = orthogonalize(torch.randn(shape, generator=generator))
        values = torch.linalg.svdvals(result)
        assert result.shape == shape
        # The quintic maps to about [0.7, 1.2]; the smallest values of a square matrix lag behind.
        assert values.max() < 1.3
        assert values.median() > 0.65


def test_the_balance_loss_of_a_uniform_router_is_top_k() -> None:
    torch.manual_seed(0)
    model = build_model()
    experts, top_k = 16, 2
    for layer in model.model.layers:
        block = layer.mlp
        assert isinstance(block, GroupedMoeBlock)
        # Each token prefers two experts, all experts equally often.
        logits = torch.zeros(8, experts)
        logits[torch.arange(8), torch.arange(0, 16, 2)] = 1e-3
        logits[torch.arange(8), torch.arange(1, 16, 2)] = 1e-3
        block.router_logits_TE = logits
    assert float(balance_loss(model)) == pytest.approx(top_k, abs=1e-3)


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    settings = Settings(steps=1000)
    factors = [settings.learning_rate_factor(step) for step in range(1000)]
    assert factors[0] == pytest.approx(1 / 40)
    assert factors[39:400] == pytest.approx([1.0] * 361)
    assert factors[700] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.01)


def test_label_smoothing_is_used_in_the_last_tenth_only() -> None:
    settings = Settings(steps=100)
    used = [settings.label_smoothing_at(step) for step in range(100)]
    assert used == [0.0] * 90 + [0.1] * 10


def test_the_mix_of_kinds_is_followed(tokenizer: Tokenizer) -> None:
    settings = Settings()
    counts = dict.fromkeys(tasks.KINDS, 0)
    paragraphs = training_paragraphs()
    for batch in itertools.islice(batches(tokenizer, paragraphs, settings), 20):
        for row in range(settings.rows):
            for index in torch.unique(batch.document_index[row]).tolist():
                places = batch.document_index[row] == index
                if index >= 0:
                    text = tokenizer.decode(batch.label_ids[row, places].tolist())
                    counts[_kind_of(text)] += int(places.sum())
    total = sum(counts.values())
    shares = {kind: count / total for kind, count in counts.items()}
    assert shares == pytest.approx(settings.mix, abs=0.04)


def _kind_of(text: str) -> str:
    if "####" in text:
        return "arithmetic"
    if re.match(r"\d+[-+*]\d+=", text):
        return "sums"
    if re.match(r"(copy|reverse|sort): ", text):
        return "strings"
    return "text" if len(text) >= 80 else "facts"
