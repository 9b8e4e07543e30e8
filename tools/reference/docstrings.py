"""Reads the docstring of a pydantic model: its text, and one description per field."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from pydantic import BaseModel

_ENTRY = re.compile(r"(\s*)(\w+(?:, \w+)*):(?:\s+(\S.*))?")
_SECTIONS = ("Attributes", "Args")


@dataclass(frozen=True)
class Described:
    """A docstring taken apart.

    Attributes:
        text: paragraphs outside the descriptions of fields, joined by blank lines.
        fields: description by name of the field; empty for a field without one.
    """

    text: str
    fields: dict[str, str]


def described(model: type[BaseModel]) -> Described:
    """Takes a model's docstring apart; fields that it inherits may be described by its bases.

    A description is a line `name: text` or `name, name: text`, in an `Attributes:` section or not,
    with the more indented lines that follow it.
    """
    bases = [
        base for base in model.__mro__ if issubclass(base, BaseModel) and base is not BaseModel
    ]
    parts = [_taken_apart(base, set(model.model_fields)) for base in bases]
    fields = {name: field.description or "" for name, field in model.model_fields.items()}
    for part in reversed(parts):
        fields |= part.fields
    return Described(parts[0].text, {name: sentence(text) for name, text in fields.items()})


def _taken_apart(cls: type, names: set[str]) -> Described:
    """Text and descriptions of one docstring; other names before a colon belong to the text."""
    lines: list[str] = []
    fields: dict[str, list[str]] = {}
    current: list[str] | None = None
    indent = 0
    for line in inspect.cleandoc(cls.__doc__ or "").splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry and names.issuperset(entry[2].split(", ")):
            current, indent = [entry[3] or ""], len(entry[1])
            fields |= dict.fromkeys(entry[2].split(", "), current)
        elif current is not None and line.strip() and _indent(line) > indent:
            current.append(line.strip())
        else:
            current = None
            if line.strip().removesuffix(":") not in _SECTIONS:
                lines.append(line.strip())
    joined = {name: " ".join(words).strip() for name, words in fields.items()}
    return Described(_paragraphs(lines), joined)


def sentence(text: str) -> str:
    """Text that begins with a capital and ends with a full stop.

    >>> sentence("seed of the draw"), sentence("`rtn` rounds."), sentence("")
    ('Seed of the draw.', '`rtn` rounds.', '')
    """
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _paragraphs(lines: list[str]) -> str:
    """Lines joined to paragraphs, which blank lines separate."""
    blocks = "\n".join(lines).split("\n\n")
    return "\n\n".join(" ".join(block.split()) for block in blocks if block.strip())
