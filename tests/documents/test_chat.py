"""Tests of chat templates, which are programs that come with a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from moe_export.documents.chat import ChatTemplate
from moe_export.documents.fields import Conversation
from moe_export.errors import CalibrationError, CheckpointError
from tests.helpers.text_models import as_text, change_json, drawn_rows, model_with

HELLO = Conversation([{"role": "user", "content": "hello"}])
TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must\ntake turns') }}{% endif %}{{ m.content }}\n{% endfor %}"
)
FOREVER = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with(tmp_path_factory.mktemp("chat") / "model", template="")


def with_template(model: Path, template: str) -> Path:
    change_json(model / "tokenizer_config.json", chat_template=template)
    return model


def test_tools_and_the_generation_prompt_reach_the_template(model: Path, tmp_path: Path) -> None:
    template = (
        "{% if tools %}{{ tools | length }} tools: {{ tools[0].name }}\n{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    with_template(model, template)
    rows = [{"messages": HELLO.messages, "tools": [{"name": "clock"}]}]
    drawn = drawn_rows(model, tmp_path / "rows", rows, chat_template=True)
    assert as_text(drawn.sequences[0].tokens) == "1 tools: clock\nhello"
    with ChatTemplate(model) as chat:
        assert chat.render(Conversation(HELLO.messages, answer="yes"), "row 1") == "hello>"


def test_date_and_chance_are_the_same_in_every_run(model: Path) -> None:
    with_template(
        model,
        "{{ strftime_now('%d %b %Y') }}"
        "{% for i in range(9) %}{{ range(9) | list | random }}{% endfor %}",
    )
    with ChatTemplate(model) as chat:
        first, second = (chat.render(HELLO, "row 1") for _ in range(2))
    assert first == second
    assert first.startswith("26 Jul 2024")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (FOREVER, "does not end within 1 seconds"),
        ("{{ 'a' * 10 ** 10 }}", "takes more memory than there is"),
        ("{{ messages[0].content * (5 * 10 ** 6) }}", "makes a text of 25000000 characters"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[0].content.nothing.more }}", "UndefinedError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ '\\ud800' }}", "half of a surrogate pair"),
    ],
)
def test_a_template_that_fails_is_one_sentence_with_the_row(
    model: Path, template: str, reason: str
) -> None:
    with_template(model, template)
    started = time.monotonic()
    with ChatTemplate(model, seconds=1) as chat, pytest.raises(CalibrationError) as error:
        chat.render(HELLO, "rows.jsonl: row 7")
    assert time.monotonic() - started < 60
    assert str(error.value).startswith("rows.jsonl: row 7: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_refused_row_is_named_and_later_rows_are_rendered(model: Path, tmp_path: Path) -> None:
    with_template(model, TURNS)
    with ChatTemplate(model) as chat:
        system = Conversation([{"role": "system", "content": "be kind"}, *HELLO.messages])
        sentence = r"row 1: the chat template refuses .*roles must take turns"
        with pytest.raises(CalibrationError, match=sentence):
            chat.render(system, "rows: row 1")
        assert chat.render(HELLO, "rows: row 2") == "hello\n"


def test_values_that_json_does_not_have_are_one_sentence(model: Path) -> None:
    with_template(model, TURNS)
    odd = Conversation([{"role": "user", "content": "hello", "image": b"bytes"}])
    with ChatTemplate(model) as chat, pytest.raises(CalibrationError, match="does not have"):
        chat.render(odd, "rows: row 1")


def test_a_tokenizer_without_a_template_or_with_damaged_files_is_one_sentence(
    tmp_path: Path,
) -> None:
    model = model_with(tmp_path / "model")
    with pytest.raises(CalibrationError, match="has no chat template; set chat_template: false"):
        ChatTemplate(model)
    (model / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read the tokenizer with its chat template"):
        ChatTemplate(model)
    (model / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with pytest.raises((CheckpointError, CalibrationError)), ChatTemplate(model) as chat:
        chat.render(HELLO, "row 1")


def test_code_beside_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    model = model_with(tmp_path / "model", template=TURNS)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    change_json(
        model / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        tokenizer_class="Evil",
    )
    with ChatTemplate(model) as chat:
        assert chat.render(HELLO, "row 1") == "hello\n"
    assert not (tmp_path / "ran").exists()
