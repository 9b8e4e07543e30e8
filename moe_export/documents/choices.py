"""The wrong choices of an item, as sequences beside the right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moe_export.demo.tasks import Document
from moe_export.documents.files import shortened
from moe_export.documents.tokens import TokenSequence
from moe_export.documents.values import as_text
from moe_export.errors import CalibrationError


def wrong_choices(choices: Any, answer: str, field: str) -> tuple[str, ...]:
    """Returns the choices of an item that are not its answer.

    Args:
        choices: Content of the item's field, which should be a list of at least two texts.
        answer: The right choice.
        field: Name of the field and its place, for messages.

    Raises:
        CalibrationError: The field holds something else, or not the answer.
    """
    found = [as_text(choice) for choice in choices] if isinstance(choices, list) else []
    texts = tuple(dict.fromkeys(text for text in found if text is not None))
    if len(texts) < 2 or None in found:
        raise CalibrationError(
            f"{field} is {shortened(choices)}, expected a list of at least two texts; correct or "
            "remove the row"
        )
    if answer not in texts:
        raise CalibrationError(
            f"{field} lacks the answer {shortened(answer)}; write the right choice as answer_field "
            "has it"
        )
    return tuple(text for text in texts if text != answer)


def with_alternatives(
    document: Document, encode: Callable[[Document], TokenSequence]
) -> TokenSequence:
    """Encodes a document, and each of its wrong choices in place of the answer."""
    others = (replace(document, answer=wrong, wrong_choices=()) for wrong in document.wrong_choices)
    return replace(encode(document), alternatives=tuple(encode(other) for other in others))


def cut(sequence: TokenSequence, length: int) -> TokenSequence:
    """Returns a sequence and its alternatives with at most `length` tokens each."""
    return replace(
        sequence,
        tokens=sequence.tokens[:length],
        prompt_tokens=min(sequence.prompt_tokens, length),
        alternatives=tuple(cut(other, length) for other in sequence.alternatives),
    )
