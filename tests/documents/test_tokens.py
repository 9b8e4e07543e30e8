"""Tests of encoding prompts with their answers, and of decoding what follows a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from moe_export.demo import checkpoint_dir
from moe_export.demo.tasks import KINDS, Document, training_documents
from moe_export.documents.tokens import HEAD_CHARACTERS, TextTokenizer
from moe_export.errors import CheckpointError
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.text_models import adding, change_json, metaspace_model, model_with


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tokens"))


def test_truncation_and_padding_of_the_file_are_off_and_the_file_stays(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path)
    document = Document("what is it", "this")
    plain = TextTokenizer(model).encode(document)
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padded = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 258,
        "pad_type_id": 0,
        "pad_token": "<|pad|>",
    }
    change_json(model / "tokenizer.json", truncation=cut, padding=padded)
    before = (model / "tokenizer.json").read_bytes()
    tokenizer = TextTokenizer(model)
    assert tokenizer.encode(document) == plain
    assert tokenizer.encode_prompt(document.prompt) == plain.tokens[:10]
    assert (model / "tokenizer.json").read_bytes() == before


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path)
    (model / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a pointer of Git LFS"):
        TextTokenizer(model)


def test_dropout_of_the_file_is_off(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path)
    vocabulary = {"a": 0, "b": 1, "ab": 2}
    dropping = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")], dropout=0.9))
    dropping.save(str(model / "tokenizer.json"))
    assert TextTokenizer(model).encode_text("ab" * 50) == [2] * 50


FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"259": {"content": "<x>"} | FLAGS}}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<x>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"x_token": "<x>"}}),
        ("tokenizer_config.json", {"eos_token": "<x>"}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<x>"]}),
        ("added_tokens.json", {"<x>": 259}),
    ],
)
def test_tokens_that_other_files_declare_are_one_token_as_in_transformers(
    tmp_path: Path, name: str, content: dict[str, Any]
) -> None:
    model = tiny_checkpoint(tmp_path)
    path = model / name
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | content))
    text = "one <x> two<x>"
    theirs = PreTrainedTokenizerFast.from_pretrained(model)
    ids = TextTokenizer(model).encode_text(text)
    assert ids == theirs(text, add_special_tokens=False).input_ids
    assert ids.count(259) == 2


def test_prompt_and_answer_are_the_tokens_of_the_text_as_a_whole(tmp_path: Path) -> None:
    model = metaspace_model(tmp_path)
    whole = Tokenizer.from_file(str(model / "tokenizer.json")).encode("2+3=5")
    sequence = TextTokenizer(model).encode(Document("2+3=", "5"))
    assert sequence.tokens == [*whole.ids, 256]
    assert sequence.prompt_tokens == len(whole.ids) - 1


def test_a_token_of_prompt_and_answer_belongs_to_the_answer(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path)
    vocabulary = {"a": 0, "b": 1, "c": 2, "bc": 3}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c")])).save(str(model / "tokenizer.json"))
    sequence = TextTokenizer(model).encode(Document("ab", "ca"))
    assert sequence.tokens == [0, 3, 0, 256]
    assert sequence.prompt_tokens == 1


@pytest.mark.parametrize("kind", KINDS)
def test_demo_documents_have_the_tokens_of_their_parts(kind: str) -> None:
    tokenizer = TextTokenizer(checkpoint_dir())
    for document in training_documents(kind, 200, 3):
        prompt = tokenizer.encode_prompt(document.prompt)
        answer = tokenizer.encode_text(document.answer)
        sequence = tokenizer.encode(document)
        assert sequence.prompt_tokens == len(prompt)
        assert sequence.tokens[: len(prompt) + len(answer)] == prompt + answer


def test_of_a_long_document_only_a_head_is_encoded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TextTokenizer(model)
    text = "word " * HEAD_CHARACTERS
    longest = 0
    encoded = tokenizer._encoded

    def watched(text: str) -> tuple[list[int], list[int]]:
        nonlocal longest
        longest = max(longest, len(text))
        return encoded(text)

    monkeypatch.setattr(tokenizer, "_encoded", watched)
    tokens = tokenizer.encode(Document("", text), limit=100).tokens
    assert longest <= HEAD_CHARACTERS
    assert len(tokens) > 100
    assert tokens[:100] == list(encoded(text[:100])[0])


def test_a_head_with_too_few_tokens_is_followed_by_more(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path)
    spaces = " " * (2 * HEAD_CHARACTERS)
    vocabulary = {"a": 0, "b": 1}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(model / "tokenizer.json"))
    sequence = TextTokenizer(model).encode(Document("", spaces + "abab"), limit=3)
    assert sequence.tokens == [0, 1, 0, 1]


def test_the_space_after_a_prompt_is_kept_when_its_continuation_is_decoded(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(metaspace_model(tmp_path))
    prompt = tokenizer.encode_prompt("hello")
    following = tokenizer.encode_text("hello world")[len(prompt) :]
    assert tokenizer.decode(following) == "world"
    assert "".join(tokenizer.continuation(prompt, following)) == " world"
    assert next(tokenizer.continuation(prompt, following)) == " "


def test_a_continuation_comes_in_whole_characters_and_loses_nothing(model: Path) -> None:
    tokenizer = TextTokenizer(model)
    prompt = tokenizer.encode_prompt("a" * 40)
    text = "é中 🙂b" * 9
    pieces = list(tokenizer.continuation(prompt, tokenizer.encode_text(text)))
    assert "".join(pieces) == text
    assert [len(piece) for piece in pieces] == [1] * len(text)
    broken = tokenizer.encode_text("é")[:1]
    assert list(tokenizer.continuation(prompt, broken)) == ["\ufffd"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda keys: keys["post_processor"]["special_tokens"].clear(),
        lambda keys: keys.update(model={"type": "WordLevel", "vocab": {}, "unk_token": "?"}),
    ],
)
def test_a_tokenizer_that_panics_or_fails_is_one_sentence(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], object]
) -> None:
    model = model_with(tmp_path / "model", **adding())
    keys = json.loads((model / "tokenizer.json").read_text())
    spoil(keys)
    (model / "tokenizer.json").write_text(json.dumps(keys))
    with pytest.raises(CheckpointError, match=r"tokenizer.json (is damaged|cannot encode a text)"):
        TextTokenizer(model).encode(Document("a", "b"))
