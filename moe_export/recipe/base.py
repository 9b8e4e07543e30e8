"""The base of all sections of a recipe, and types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
MOST = 2**31 - 1
"""Largest number of things that a recipe may ask for."""

Count = Annotated[int, Field(ge=1, le=MOST)]
DocumentCount = Annotated[int, Field(ge=1, le=1_000_000)]
ThreadCount = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, le=MOST)]
Factor = Annotated[float, Field(ge=1e-9, le=1e9)]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class Section(BaseModel):
    """Base of all sections: frozen; unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class OneOf:
    """A word of a table that may grow, such as that of formats; checked when a recipe is read.

    Attributes:
        words: Function that returns the words in order.
    """

    words: Callable[[], tuple[str, ...]]

    def check(self, word: str) -> str:
        """Returns a word if the table has it.

        Raises:
            PydanticCustomError: the table does not have it.
        """
        *most, last = map(repr, self.words())
        if word not in self.words():
            expected = f"{', '.join(most)} or {last}" if most else last
            raise PydanticCustomError(
                "literal_error", "Input should be {expected}", {"expected": expected}
            )
        return word

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "enum": list(self.words())}


def parse_bytes(value: object) -> object:
    """A number of bytes from `6GiB`, `500 MB` or a plain number; other types are returned as is.

    >>> parse_bytes("6GiB"), parse_bytes("500 MB"), parse_bytes(7)
    (6442450944, 500000000, 7)

    Raises:
        ValueError: the text is no number of bytes.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if match and len(match[1]) <= 20 and match[2].upper() in _UNITS:
            return int(float(match[1]) * _UNITS[match[2].upper()])
        raise ValueError(
            f"{value!r} is no number of bytes; write a whole number, or one like 500MB or 6GiB"
        )
    return value


ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1, le=2**63 - 1)]
