"""Places where a model's chat template may be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_export.serve.chat import ChatTemplate
from moe_export.serve.problems import RequestError

MESSAGES = [{"role": "user", "content": "hi"}]


def template(word: str) -> str:
    return word + ": {{ messages[0].content }}{{ bos_token }}"


def test_the_first_place_that_has_a_template_counts(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        ChatTemplate(tmp_path).render(MESSAGES)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template("json")}))
    assert ChatTemplate(tmp_path).render(MESSAGES) == "json: hi"
    config = {"bos_token": "<s>", "chat_template": template("config")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate(tmp_path).render(MESSAGES) == "config: hi<s>"
    (tmp_path / "chat_template.jinja").write_text(template("jinja"))
    assert ChatTemplate(tmp_path).render(MESSAGES) == "jinja: hi<s>"
