"""Tokenizer files and `generation_config.json` of a checkpoint."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from moe_export.testing.tiny import tiny_checkpoint
from tools.trust.kinds.base import RIGHT, ROWS, Case, Kind, copy_model, run_words, write_recipe
from tools.trust.mutate import change_bytes, change_json, json_bytes

FILES = ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


class TokenizerFiles(Kind):
    """Accepted files give the tokens of transformers, or of `tokenizers` if it refuses them."""

    NAME = "tokenizer"
    WHAT = "values and bytes of tokenizer.json, tokenizer_config.json, generation_config.json"
    SHARE = 1.2

    def prepare(self) -> None:
        tiny_checkpoint(self.base / "model")
        path = self.base / "model" / "tokenizer.json"
        content = json.loads(path.read_text())
        content["truncation"] = {
            "direction": "Right",
            "max_length": 64,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        path.write_text(json.dumps(content))

    def case(self, random: Random, place: Path) -> Case:
        model = copy_model(self.base / "model", place)
        path = model / random.choice(FILES)
        if random.random() < 0.6:
            content, what = change_json(random, json.loads(path.read_bytes()))
            path.write_bytes(json_bytes(content))
        else:
            raw, what = change_bytes(random, path.read_bytes())
            path.write_bytes(raw)
        write_recipe(place)
        until = random.choice(("calibrate", "export"))
        return Case(f"{path.name}: {what}", [run_words("--until", until)], lambda _: _judge(place))


def sequences(run: Path) -> list[list[int]]:
    """Tokens of every sequence of a calibration set."""
    tensors = load_file(run / "calibrate" / "calibration.safetensors")
    tokens_N, ends = tensors["tokens"], tensors["offsets"]
    return [tokens_N[a:b].tolist() for a, b in itertools.pairwise(ends)]


def plain_tokens(model: Path, texts: list[str]) -> list[list[int]]:
    """Tokens of texts without special ones around them, as transformers gives them."""
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - in the process of a case

    try:
        theirs: Any = PreTrainedTokenizerFast.from_pretrained(model, local_files_only=True)
        return [theirs(text, add_special_tokens=False).input_ids for text in texts]
    except Exception:  # noqa: BLE001 - whatever it raises
        return _of_the_file(model, texts)


def _of_the_file(model: Path, texts: list[str]) -> list[list[int]]:
    """Tokens by `tokenizer.json` alone, whatever truncation and padding it holds."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def is_text(sequence: list[int], texts: list[list[int]], length: int) -> bool:
    """True if a sequence is one of the texts, cut to `length`, with at most one token around it."""
    for text in texts:
        for first in (0, 1):
            body = sequence[first : first + len(text)]
            rest = sequence[first + len(text) :]
            is_cut = len(sequence) == length
            if body == text[: len(body)] and (
                is_cut or (len(body) == len(text) and len(rest) <= 1)
            ):
                return True
    return False


def _judge(place: Path) -> str:
    texts = plain_tokens(place / "model", [str(row["text"]) for row in ROWS])
    for sequence in sequences(place / "run"):
        if not is_text(sequence, texts, 48):
            return f"a sequence is no text of the rows: {sequence[:12]}"
    return RIGHT if np.all(sequences(place / "run")[0]) is not None else ""
