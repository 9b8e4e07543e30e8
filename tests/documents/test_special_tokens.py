"""Tests of special tokens: each is there once, whoever puts it there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from moe_export.documents.sources import draw
from moe_export.documents.special_tokens import end_ids
from moe_export.documents.tokens import TextTokenizer
from moe_export.errors import CheckpointError
from moe_export.recipe import Source
from moe_export.testing.tiny import END, START, tiny_checkpoint
from tests.helpers.text_models import (
    END_ID,
    START_ID,
    adding,
    as_text,
    change_json,
    drawn_rows,
    model_with,
)

TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ASKED = "{% if add_generation_prompt %}assistant: {% endif %}"
WITH_BOS = "{{ bos_token }}" + TURNS + ASKED
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize(("template", "origin"), [(WITH_BOS, "template"), (TURNS, "nobody")])
def test_a_rendered_template_has_the_tokens_that_transformers_gives_it(
    tmp_path: Path, template: str, origin: str
) -> None:
    model = model_with(tmp_path / "model", template=template, **adding())
    drawn = drawn_rows(model, tmp_path / "r", [{"messages": MESSAGES}], chat_template=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
    assert drawn.sequences[0].tokens == expected
    assert expected.count(START_ID) == (origin == "template")
    assert drawn.bos == origin


def test_a_rendered_prompt_begins_with_bos_once_and_ends_with_eos_once(tmp_path: Path) -> None:
    model = model_with(tmp_path / "model", template=WITH_BOS, **adding(end=" <|endoftext|>"))
    fields: dict[str, Any] = {"prompt_field": "q", "answer_field": "a", "chat_template": True}
    drawn = drawn_rows(model, tmp_path / "r", [{"q": "hi", "a": "yes"}], **fields)
    (sequence,) = drawn.sequences
    assert as_text(sequence.tokens) == f"{START}user: hi\nassistant: yes<|endoftext|>"
    assert as_text(sequence.tokens[sequence.prompt_tokens :]) == "yes<|endoftext|>"


@pytest.mark.parametrize(
    ("text", "processor", "expected", "origin"),
    [
        ("ab", adding(), f"{START}ab", "tokenizer"),
        (f"{START}ab", adding(), f"{START}ab", "text"),
        ("ab", {}, "ab", "nobody"),
        ("ab", adding(end=" <|endoftext|>"), f"{START}ab<|endoftext|>", "tokenizer"),
    ],
)
def test_a_text_begins_and_ends_as_its_tokenizer_says(
    tmp_path: Path, text: str, processor: dict[str, Any], expected: str, origin: str
) -> None:
    model = model_with(tmp_path / "model", **processor)
    drawn = drawn_rows(model, tmp_path / "r", [{"text": text}])
    assert as_text(drawn.sequences[0].tokens) == expected
    assert drawn.bos == origin


@pytest.mark.parametrize("answer", ["yes", f"yes{END}"])
def test_an_answer_ends_with_eos_once(tmp_path: Path, answer: str) -> None:
    model = model_with(tmp_path / "model", **adding())
    fields = {"prompt_field": "q", "answer_field": "a"}
    drawn = drawn_rows(model, tmp_path / "r", [{"q": "hi", "a": answer}], **fields)
    assert as_text(drawn.sequences[0].tokens) == f"{START}hiyes{END}"


def test_a_prompt_to_continue_has_bos_once_and_no_end(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(model_with(tmp_path / "model", **adding(end=" <|endoftext|>")))
    assert as_text(tokenizer.encode_prompt("ab")) == f"{START}ab"
    assert as_text(tokenizer.encode_prompt(f"{START}ab")) == f"{START}ab"


def test_bos_that_only_the_config_of_the_tokenizer_asks_for_is_added(tmp_path: Path) -> None:
    model = model_with(tmp_path / "model")
    change_json(model / "tokenizer_config.json", add_bos_token=True, bos_token={"content": START})
    assert TextTokenizer(model).encode_prompt("a")[0] == START_ID
    change_json(model / "tokenizer_config.json", add_bos_token=False)
    assert START_ID not in TextTokenizer(model).encode_prompt("a")


def test_windows_of_a_text_begin_with_bos_and_are_full(tmp_path: Path) -> None:
    model = model_with(tmp_path / "model", **adding())
    path = tmp_path / "text.txt"
    path.write_text("abcdefgh" * 100)
    drawn = draw(Source(text=str(path)), model, 5, 16, 0, "train")
    for sequence in drawn.sequences:
        assert sequence.tokens[0] == START_ID
        assert sequence.tokens.count(START_ID) == 1
        assert len(sequence.tokens) == 16
        assert sequence.prompt_tokens == 1
    assert drawn.bos == "tokenizer"


@pytest.mark.parametrize("ids", ["x", [[1]], 1.5, True, [-1], 2**63])
def test_ids_of_eos_that_are_no_ids_are_refused(tmp_path: Path, ids: Any) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    change_json(model / "generation_config.json", eos_token_id=ids)
    with pytest.raises(CheckpointError, match=r"generation_config.json: eos_token_id is"):
        end_ids(model)
    change_json(model / "generation_config.json", eos_token_id=[END_ID, START_ID])
    assert end_ids(model) == [END_ID, START_ID]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x80", "[" * 100_000])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_damaged_file_beside_the_tokenizer_is_one_sentence(
    tmp_path: Path, name: str, content: str
) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    (model / name).write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read as a JSON object"):
        TextTokenizer(model)
