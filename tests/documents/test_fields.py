"""Tests of the fields of a row: texts, prompts, and conversations in their published forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_export.documents.fields import Conversation, row_content
from moe_export.documents.rows import Row
from moe_export.errors import CalibrationError
from moe_export.recipe import Source

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
TOOL = {"type": "function", "function": {"name": "clock"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock"}}]}
SYSTEM = {"role": "system", "content": "be kind"}


def content(fields: dict[str, Any], **source: Any) -> Any:
    return row_content(Row("rows.jsonl", 3, fields), Source(jsonl="rows.jsonl", **source))


@pytest.mark.parametrize(
    ("fields", "messages", "tools"),
    [
        ({"messages": TURNS}, TURNS, []),
        ({"messages": json.dumps(TURNS)}, TURNS, []),
        ({"conversations": SHARED}, TURNS, []),
        ({"conversations": TURNS}, TURNS, []),
        ({"messages": SHARED}, TURNS, []),
        ({"conversations": SHARED, "system": "be kind"}, [SYSTEM, *TURNS], []),
        ({"messages": TURNS, "tools": [TOOL]}, TURNS, [TOOL]),
        ({"messages": TURNS, "tools": json.dumps([TOOL])}, TURNS, [TOOL]),
        ({"messages": TURNS, "tools": None}, TURNS, []),
        ({"messages": TURNS, "tools": ""}, TURNS, []),
        ({"messages": [TURNS[0], CALL]}, [TURNS[0], CALL], []),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
            TURNS[:1],
            [],
        ),
        ({"messages": None, "conversations": TURNS}, TURNS, []),
        ({"messages": [{"role": "Human", "content": "hi"}]}, TURNS[:1], []),
        ({"conversations": [{"from": "Human", "value": "hi"}]}, TURNS[:1], []),
        ({"conversations": [{"role": "user", "value": "hi"}]}, TURNS[:1], []),
        (
            {"messages": TURNS, "functions": [{"name": "clock"}]},
            TURNS,
            [{"type": "function", "function": {"name": "clock"}}],
        ),
    ],
)
def test_conversations_are_read_in_their_published_forms(
    fields: dict[str, Any], messages: list[Any], tools: list[Any]
) -> None:
    assert content(fields, chat_template=True) == Conversation(messages, tools)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"messages": None}, "field 'messages' is null, expected a list of messages"),
        ({"messages": []}, "field 'messages' is an empty list"),
        ({"messages": "hello"}, "field 'messages' is text that is not JSON"),
        ({"messages": "[" * 100_000}, "field 'messages' is text that is not JSON"),
        ({"messages": '"hello"'}, "field 'messages' is text, expected a list"),
        ({"messages": {"role": "user"}}, "field 'messages' is an object"),
        ({"messages": ["hello"]}, "message 1 is text, expected an object"),
        ({"messages": [*TURNS, {"content": "a"}]}, "message 3 has no role"),
        ({"messages": [{"role": 1, "content": "a"}]}, "message 1 has no role"),
        ({"messages": [{"role": "user"}]}, "message 1 has no content; it has 'role'"),
        ({"messages": [{"role": "user", "content": None}]}, "message 1: its content is null"),
        ({"messages": [{"role": "user", "content": 1}]}, "message 1: its content is a number"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "message 1: its content is a list",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "message 1 is from 'alien'"),
        ({"messages": TURNS, "tools": "clock"}, "field 'tools' is text that is not JSON"),
        ({"messages": TURNS, "tools": 5}, "field 'tools' is a number"),
        ({"messages": TURNS, "tools": ["clock"]}, "field 'tools': entry 1 is text"),
        ({"messages": TURNS, "functions": ["clock"]}, "field 'functions': entry 1 is text"),
        ({"text": "a"}, "no field 'messages' or 'conversations'.*it has 'text'"),
    ],
)
def test_other_conversations_are_one_sentence_with_file_and_row(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CalibrationError, match=rf"^rows.jsonl: row 3.*{sentence}") as error:
        content(fields, chat_template=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        ([1], "a list"),
        ({"a": 1}, "an object"),
        (True, "true"),
        (False, "false"),
        (float("nan"), "a number"),
        (b"a", "of type bytes"),
    ],
)
def test_a_field_that_is_no_text_never_becomes_one(value: Any, kind: str) -> None:
    sentence = f"row 3: field 'text' is {kind}, expected text"
    with pytest.raises(CalibrationError, match=sentence):
        content({"text": value})
    fields = {"prompt_field": "q", "answer_field": "text"}
    with pytest.raises(CalibrationError, match=sentence):
        content({"q": "a", "text": value}, **fields)
    with pytest.raises(CalibrationError, match=sentence):
        content({"q": "a", "text": value}, **fields, chat_template=True)


def test_numbers_are_written_as_in_json() -> None:
    document = content({"q": 5, "a": 2.5}, prompt_field="q", answer_field="a")
    assert (document.prompt, document.answer) == ("5", "2.5")
    assert content({"text": 10**400}).answer == "1" + "0" * 400


def test_a_conversation_in_a_text_field_is_told_of_chat_template() -> None:
    with pytest.raises(CalibrationError, match="set chat_template: true"):
        content({"text": TURNS})


def test_every_row_is_checked_whether_drawn_or_not(tmp_path: Path) -> None:
    from moe_export.demo import checkpoint_dir
    from moe_export.documents.sources import draw

    path = tmp_path / "rows.jsonl"
    rows = [{"text": "some words"}] * 200 + [{"text": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CalibrationError, match="row 201: field 'text' is null"):
        draw(Source(jsonl=str(path)), checkpoint_dir(), 1, 16, 0, "train")


@pytest.mark.parametrize(("prompt", "answer", "name"), [("", "a", "q"), ("q", " \n", "a")])
def test_a_prompt_or_an_answer_that_is_empty_is_no_item(
    prompt: str, answer: str, name: str
) -> None:
    with pytest.raises(CalibrationError, match=f"row 3: field '{name}' is empty"):
        content({"q": prompt, "a": answer}, prompt_field="q", answer_field="a")


@pytest.mark.parametrize("choices", [["a", None], ["a", {"b": 1}], {"a": 1}, "z" * 5000])
def test_choices_that_are_no_texts_are_refused(choices: Any) -> None:
    fields = {"q": "x", "a": "a", "c": choices}
    with pytest.raises(CalibrationError, match=r"field 'c' is .*expected a list of") as error:
        content(fields, prompt_field="q", answer_field="a", choices_field="c")
    assert len(str(error.value)) < 300
