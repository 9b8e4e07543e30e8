"""Prompts of the demo's tasks as token ids, and the answers of our own decoding to them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from moe_export.demo.tasks import test_items
from moe_export.ort.decoding import generate
from moe_export.ort.session import OrtModel

END = 0
"""Token that ends an answer of the demo model."""

NEW_TOKENS = 40
COUNTS = {"arithmetic": 20, "sums": 30, "facts": 24, "strings": 12}


def demo_prompts() -> list[str]:
    """The 86 prompts that every application answers."""
    return [item.prompt for kind, count in COUNTS.items() for item in test_items(kind, count)]


def demo_ids(folder: Path) -> list[list[int]]:
    """Token ids of the prompts, by the tokenizer of an exported model."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(prompt).ids for prompt in demo_prompts()]


def demo_answers(folder: Path, prompts: list[list[int]], operator: str) -> list[list[int]]:
    """Greedy tokens of our own decoding for each prompt, the end token included.

    Args:
        folder: Folder of an exported model.
        prompts: Token ids of each prompt.
        operator: `native` for the operator library, `portable` for standard operators.
    """
    model = OrtModel(folder, operator=operator)
    return [list(generate(model, ids, NEW_TOKENS, [END])) for ids in prompts]


def as_lines(rows: list[list[int]]) -> str:
    """Token ids, one line per row, as the examples in other languages read and print them."""
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)
