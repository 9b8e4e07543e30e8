"""Tests of what an exported tokenizer states about the tokens around a text."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from moe_export.documents.exported_tokenizer import state_special_tokens
from moe_export.errors import CheckpointError


def stated(folder: Path, template: str | None, **config: Any) -> dict[str, Any]:
    """The tokenizer config afterwards, for a tokenizer that puts a template around a text."""
    vocabulary = {"1": 0, "<s>": 1, "</s>": 2, "<x>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="1"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>", "<x>"])
    if template is not None:
        special = [(token, vocabulary[token]) for token in ("<s>", "</s>", "<x>")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=special
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    start = state_special_tokens(folder)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    assert {key: content[key] for key in config} == config
    assert start.has_bos == content["add_bos_token"]
    assert (start.missing_bos is None) == (template is not None or not start.has_bos)
    return {key: value for key, value in content.items() if key.startswith("add_")}


@pytest.mark.parametrize(
    ("template", "bos", "eos"),
    [
        (None, False, False),
        ("<s> $A", True, False),
        ("<s> $A </s>", True, True),
        ("$A </s>", False, True),
    ],
)
def test_the_tokens_around_a_text_are_stated(
    template: str | None, bos: bool, eos: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert stated(tmp_path, template) == {"add_bos_token": bos, "add_eos_token": eos}
    assert not caplog.records


def test_a_number_that_json_does_not_have_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a number that JSON does not have"):
        stated(tmp_path, "<s> $A", bos_token=float("inf"))


def test_truncation_and_padding_of_the_file_hide_nothing(tmp_path: Path) -> None:
    stated(tmp_path, "<s> $A")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=8, pad_id=3, pad_token="<x>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    state_special_tokens(tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (content["add_bos_token"], content["add_eos_token"]) == (True, False)


def test_what_the_checkpoint_says_itself_stays(tmp_path: Path) -> None:
    assert stated(tmp_path, None, add_bos_token=True) == {
        "add_bos_token": True,
        "add_eos_token": False,
    }


def test_a_token_that_genai_cannot_add_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        stated(tmp_path, "<x> $A")
    assert "the tokenizer adds <x>, which is not its bos_token" in caplog.text


def test_a_tokenizer_without_a_config_stays_without_one(tmp_path: Path) -> None:
    stated(tmp_path, None)
    (tmp_path / "tokenizer_config.json").unlink()
    state_special_tokens(tmp_path)
    assert not (tmp_path / "tokenizer_config.json").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    stated(tmp_path, None)
    (tmp_path / name).write_text("{")
    with pytest.raises(CheckpointError, match=name):
        state_special_tokens(tmp_path)
