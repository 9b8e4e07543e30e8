"""Fields of a row that hold a document: a text, a prompt with its answer, or a conversation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from moe_export.demo.tasks import Document
from moe_export.documents.choices import wrong_choices
from moe_export.documents.files import shortened
from moe_export.documents.rows import Row
from moe_export.documents.values import as_text, kind
from moe_export.errors import CalibrationError
from moe_export.recipe import Source

CONVERSATION_FIELDS = ("messages", "conversations")
"""Fields that may hold a conversation: the first one with content."""

MOST_NAMES = 12
"""Names of fields in a message."""

TOOLS_FIELD, FUNCTIONS_FIELD, SYSTEM_FIELD = "tools", "functions", "system"

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Roles of chat templates for the speakers of ShareGPT's `from`."""

OTHER_NAMES = ("human", "gpt", "chatgpt", "user", "assistant", "system", "tool")
"""Speakers that are no role of a template if `role` names them so, or in capitals."""


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template.

    Attributes:
        messages: Messages with `role` and `content`, and what else a data set gives them.
        tools: Descriptions of the tools that the model may call; empty for none.
        answer: Text that follows the rendered messages; None if they hold the whole document.
        wrong_choices: Texts that the answer is held against.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] = field(default_factory=list)
    answer: str | None = None
    wrong_choices: tuple[str, ...] = ()

    def rendered(self, text: str) -> Document:
        """Returns the document that the rendered messages and the answer make."""
        if self.answer is None:
            return Document("", text)
        return Document(text, self.answer, self.wrong_choices)


def fields_of(source: Source) -> tuple[str, ...]:
    """Names of the fields that a source uses."""
    if source.prompt_field is not None and source.answer_field is not None:
        choices = () if source.choices_field is None else (source.choices_field,)
        return source.prompt_field, source.answer_field, *choices
    if source.chat_template:
        return *CONVERSATION_FIELDS, TOOLS_FIELD, FUNCTIONS_FIELD, SYSTEM_FIELD
    return (source.text_field,)


def row_content(row: Row, source: Source) -> Document | Conversation:
    """Document of a row, or the conversation that a chat template makes one of.

    Raises:
        CalibrationError: A field is absent, or holds something else.
    """
    if source.prompt_field is not None and source.answer_field is not None:
        prompt, answer = (_part(row, name) for name in (source.prompt_field, source.answer_field))
        wrong = _wrong_choices(row, source, answer)
        if source.chat_template:
            message = {"role": "user", "content": prompt}
            return Conversation([message], answer=answer, wrong_choices=wrong)
        return Document(prompt, answer, wrong)
    if source.chat_template:
        return _conversation(row)
    return Document("", text_of(row, source.text_field))


def _wrong_choices(row: Row, source: Source, answer: str) -> tuple[str, ...]:
    name = source.choices_field
    if name is None:
        return ()
    if name not in row.fields:
        raise CalibrationError(
            f"{row.place} has no field {name!r}; it has {_names(row)}: name the right one in "
            "choices_field"
        )
    return wrong_choices(row.fields[name], answer, f"{row.place}: field {name!r}")


def text_of(row: Row, name: str) -> str:
    """Text of a field; a number is written as JSON does.

    Raises:
        CalibrationError: The field is absent, or holds no text.
    """
    if name not in row.fields:
        raise CalibrationError(
            f"{row.place} has no field {name!r}; it has {_names(row)}: name the right one in "
            "text_field, or in prompt_field and answer_field; chat_template: true reads messages"
        )
    value = row.fields[name]
    text = as_text(value)
    if text is not None:
        return require_characters(text, f"{row.place}: field {name!r}")
    advice = "remove such rows or name another field"
    if _is_conversation(value):
        advice = "set chat_template: true for conversations in messages or conversations"
    raise CalibrationError(f"{row.place}: field {name!r} is {kind(value)}, expected text; {advice}")


def _part(row: Row, name: str) -> str:
    """Prompt or answer of a row, which may not be empty: one without the other is no item."""
    text = text_of(row, name)
    if not text.strip():
        raise CalibrationError(
            f"{row.place}: field {name!r} is empty, expected a prompt and an answer; remove such "
            "rows or name another field"
        )
    return text


def require_characters(text: str, place: str) -> str:
    """Returns the text if all of it are characters.

    Raises:
        CalibrationError: It holds half of a surrogate pair, which UTF-8 cannot hold.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CalibrationError(
            f"{place} holds half of a surrogate pair (U+{ord(text[error.start]):04X}), which is no "
            "character; remove it or the row"
        ) from error
    return text


def _conversation(row: Row) -> Conversation:
    present = [name for name in CONVERSATION_FIELDS if name in row.fields]
    name = next((name for name in present if row.fields[name]), present[0] if present else None)
    if name is None:
        raise CalibrationError(
            f"{row.place} has no field 'messages' or 'conversations', which chat_template: true "
            f"reads; it has {_names(row)}: rename its field, name prompt_field and answer_field, "
            "or set chat_template: false"
        )
    place = f"{row.place}: field {name!r}"
    value = _parsed(row.fields[name], place)
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind(value)
        raise CalibrationError(
            f"{place} is {found}, expected a list of messages; remove such rows or name another "
            "field"
        )
    messages = [
        _message(message, f"{place}, message {number}") for number, message in enumerate(value, 1)
    ]
    system = row.fields.get(SYSTEM_FIELD)
    if system not in (None, "") and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": text_of(row, SYSTEM_FIELD)})
    return Conversation(messages, _tools(row))


def _tools(row: Row) -> list[Any]:
    """Tools of a row; `functions`, an older form, are tools without their frame."""
    tools = _objects(row, TOOLS_FIELD)
    functions = [] if tools else _objects(row, FUNCTIONS_FIELD)
    return tools + [{"type": "function", "function": each} for each in functions]


def _objects(row: Row, name: str) -> list[Any]:
    place = f"{row.place}: field {name!r}"
    value = row.fields.get(name)
    value = _parsed(value, place) if value not in (None, "") else []
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise CalibrationError(
            f"{place} is {kind(value)}, expected a list of objects; correct or remove it"
        )
    for number, each in enumerate(value, 1):
        if not isinstance(each, dict):
            raise CalibrationError(
                f"{place}: entry {number} is {kind(each)}, expected an object that describes a "
                "tool; correct or remove it"
            )
    return value


def _message(value: Any, place: str) -> dict[str, Any]:
    """A message with `role` and `content`, also from ShareGPT's `from` and `value`."""
    if not isinstance(value, dict):
        raise CalibrationError(f"{place} is {kind(value)}, expected an object; remove the row")
    message = dict(value)
    if "role" not in message and "from" in message:
        speaker = message.pop("from")
        message["role"] = ROLES.get(speaker.casefold()) if isinstance(speaker, str) else None
        if message["role"] is None:
            raise CalibrationError(
                f"{place} is from {shortened(speaker)}, expected one of {', '.join(ROLES)}; rename "
                "the speaker or remove the row"
            )
    if "content" not in message and "value" in message:
        message["content"] = message.pop("value")
    if not isinstance(message.get("role"), str):
        raise CalibrationError(
            f"{place} has no role; expected 'role' and 'content', or 'from' and 'value'"
        )
    if message["role"].casefold() in OTHER_NAMES:
        message["role"] = ROLES[message["role"].casefold()]
    message["content"] = _content(message, place)
    return message


def _content(message: dict[str, Any], place: str) -> str | None:
    """Text of a message; None if it calls tools instead. Parts that are text are joined."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return None
    if isinstance(content, list) and content and all(map(_is_text_part, content)):
        content = "".join(part["text"] for part in content)
    if "content" not in message:
        raise CalibrationError(
            f"{place} has no content; it has {_keys(message)}: expected 'role' and 'content', or "
            "'from' and 'value'"
        )
    if not isinstance(content, str):
        raise CalibrationError(
            f"{place}: its content is {kind(content)}, expected text; remove the row"
        )
    return require_characters(content, place)


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _parsed(value: Any, place: str) -> Any:
    """The value, or what a string holds as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(
            f"{place} is text that is not JSON, expected a list of objects; remove the row, or set "
            "chat_template: false"
        ) from error


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _names(row: Row) -> str:
    return _keys(row.fields)


def _keys(fields: dict[str, Any]) -> str:
    names = [shortened(name) for name in fields]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return (", ".join(names[:MOST_NAMES]) or "no fields") + more
