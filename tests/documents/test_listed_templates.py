"""Tests of chat templates that a tokenizer's config lists by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from moe_export.documents.listed_templates import separate_listed_templates
from moe_export.errors import CheckpointError
from moe_export.testing.tiny import tiny_checkpoint

LISTED = [
    {"name": "default", "template": "{{ messages }}"},
    {"name": "tool_use", "template": "{{ tools }}"},
]


def listing(folder: Path, templates: Any) -> Path:
    """Config of a tokenizer that lists templates."""
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {"chat_template": templates}))
    return path


def test_transformers_reads_the_same_templates_from_files_of_their_own(tmp_path: Path) -> None:
    config = listing(tiny_checkpoint(tmp_path / "m"), LISTED)
    before = AutoTokenizer.from_pretrained(tmp_path / "m").chat_template
    separate_listed_templates(tmp_path / "m")
    assert json.loads(config.read_text())["chat_template"] == "{{ messages }}"
    assert (tmp_path / "m" / "chat_template.jinja").read_text() == "{{ messages }}"
    after = AutoTokenizer.from_pretrained(tmp_path / "m").chat_template
    assert after == before == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


def test_a_list_without_a_default_and_files_that_are_there(tmp_path: Path) -> None:
    config = listing(tmp_path, LISTED[1:])
    (tmp_path / "additional_chat_templates").mkdir()
    more = tmp_path / "additional_chat_templates" / "tool_use.jinja"
    more.write_text("own")
    separate_listed_templates(tmp_path)
    assert "chat_template" not in json.loads(config.read_text())
    assert more.read_text() == "own"
    assert not (tmp_path / "chat_template.jinja").exists()


@pytest.mark.parametrize("name", ["../a", "", "a/b", None])
def test_a_name_that_leads_elsewhere_is_refused(name: Any, tmp_path: Path) -> None:
    listing(tmp_path, [{"name": name, "template": "x"}])
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: an entry of chat_template"):
        separate_listed_templates(tmp_path)
