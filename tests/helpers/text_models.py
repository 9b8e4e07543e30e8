"""Tiny checkpoints whose tokenizers differ in one thing, and rows to read with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from moe_export.documents.sources import Drawn, draw
from moe_export.recipe import Source
from moe_export.testing.tiny import END, START, tiny_checkpoint

END_ID, START_ID = 256, 257
"""Ids of the special tokens of a tiny checkpoint; every byte is a token of its own before them."""


def change_json(path: Path, **keys: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | keys))


def model_with(directory: Path, *, template: str | None = None, **tokenizer: Any) -> Path:
    """Tiny checkpoint with other keys of `tokenizer.json` and a chat template."""
    model = tiny_checkpoint(directory)
    change_json(model / "tokenizer.json", **tokenizer)
    change_json(model / "tokenizer_config.json", bos_token=START)
    if template is not None:
        change_json(model / "tokenizer_config.json", chat_template=template)
    return model


def adding(start: str = f"{START} ", end: str = "") -> dict[str, Any]:
    """Key of a post-processor that adds special tokens around a text, BOS unless told otherwise."""
    processor = processors.TemplateProcessing(
        single=f"{start}$A{end}",
        pair=f"{start}$A $B:1{end}",
        special_tokens=[(START, START_ID), (END, END_ID)],
    )
    return {"post_processor": json.loads(processor.__getstate__())}


def metaspace_model(directory: Path) -> Path:
    """Tiny checkpoint with a tokenizer that puts a mark of a word's start before every text."""
    model = tiny_checkpoint(directory)
    vocabulary = {c: i for i, c in enumerate("\u2581abcdefghijklmnopqrstuvwxyz0123456789+=?")}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    tokenizer.save(str(model / "tokenizer.json"))
    return model


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn_rows(
    model: Path, path: Path, rows: Sequence[Any], /, length: int = 100, **source: Any
) -> Drawn:
    """Draws all rows of a source, after writing them to a file."""
    write_rows(path, rows)
    return draw(Source(jsonl=str(path), **source), model, len(rows), length, 0, "train")


def as_text(tokens: list[int]) -> str:
    """Text of the tokens of a tiny checkpoint, special ones included."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, END, START, "<|pad|>"]
    decoder = decoders.ByteLevel()
    return str(decoder.decode([names[token] for token in tokens]))


def copied(model: Path, target: Path) -> Path:
    return Path(shutil.copytree(model, target))
