"""A kind of inputs, and one case of it."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tools.trust.sandbox import Outcome

RIGHT = ""
"""Judgement on a command that ended well and did what its input says."""

Judge = Callable[[list[Outcome]], str]
"""Function that returns `RIGHT`, or what is wrong with the results of commands that all ended with
exit code 0."""


def _right(_: list[Outcome]) -> str:
    return RIGHT


@dataclass(frozen=True)
class Case:
    """One input and the commands that read it.

    Attributes:
        what: Description of the input.
        commands: Words of the commands, in order; the first that is refused is the last.
        judge: Judgement on the results.
        ends: Seconds that a command may take, by default those of the sandbox.
    """

    what: str
    commands: list[list[str]]
    judge: Judge = field(default=_right)


class Kind(ABC):
    """Inputs of one kind.

    Args:
        base: Folder with good inputs, made by `prepare`.

    Attributes:
        NAME: Name in tables.
        WHAT: Changes, in words.
        SHARE: Share of the cases of a campaign, relative to the other kinds.
    """

    NAME: str
    WHAT: str
    SHARE: float

    def __init__(self, base: Path) -> None:
        self.base = base

    def prepare(self) -> None:  # noqa: B027 - not every kind needs it
        """Makes the good inputs in `base`, once."""

    @abstractmethod
    def case(self, random: Random, place: Path) -> Case:
        """Makes a case.

        Args:
            random: Source of everything that is drawn.
            place: Empty folder of the case, which is the working directory of its commands.
        """


SMALL: dict[str, Any] = {
    "model": {"source": "model"},
    "calibrate": {"sources": [{"jsonl": "rows.jsonl"}], "sequences": 4, "sequence_length": 48},
    "importance": {"scores": ["magnitude"]},
    "plan": {"keep": 0.5, "score": "magnitude"},
}
"""Recipe that needs no gradient."""

ROWS = [
    {
        "text": f"The number {n} comes before {n + 1}; Grüße, 你好.",
        "question": f"{n}+1=",
        "answer": n,
    }
    for n in range(6)
]


def write_recipe(place: Path, **sections: Any) -> str:
    """Writes a recipe and rows for calibration; returns the recipe's name."""
    (place / "recipe.yaml").write_text(yaml.safe_dump(SMALL | sections))
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (place / "rows.jsonl").write_text(rows, encoding="utf-8")
    return "recipe.yaml"


def run_words(*more: str) -> list[str]:
    """Words that run the recipe of a case."""
    return ["run", "recipe.yaml", "--run", "run", "--threads", "1", *more]


def copy_model(source: Path, place: Path) -> Path:
    """Copies a checkpoint into the folder of a case."""
    return Path(shutil.copytree(source, place / "model"))
