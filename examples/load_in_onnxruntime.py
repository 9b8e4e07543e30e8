"""Run an exported model in plain ONNX Runtime, without moe-export installed.

python examples/load_in_onnxruntime.py FOLDER [PROMPT]

FOLDER is one exported model, such as runs/demo_50pct/export/pruned. It needs the packages numpy,
onnxruntime and tokenizers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer


def main(folder: str, prompt: str = "12+30=", new_tokens: int = 32) -> None:
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    # Training may have saved both in tokenizer.json.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.encode(prompt).ids
    tokens = generate(open_session(Path(folder)), ids, new_tokens, eos_of(Path(folder)))
    # Decoded together: a tokenizer may drop the space that a text begins with.
    print(tokenizer.decode([*ids, *tokens]))


def open_session(folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # no warning about the default of logits_from
    library = folder / "libmoe_export_ops.so"
    if library.exists():  # faster; without it the same answers come from standard operators
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )


def eos_of(folder: Path) -> list[int]:
    """Tokens that end a text."""
    eos = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id", [])
    return eos if isinstance(eos, list) else [eos]


def generate(
    session: ort.InferenceSession, prompt: list[int], new_tokens: int, eos_ids: list[int]
) -> list[int]:
    """Greedy decoding: the prompt in one step, then one token at a time through the KV cache."""
    cache = {
        value.name: np.zeros(
            # Axes that have a name are the batch and, for keys and values, the tokens so far.
            [1, *(size if isinstance(size, int) else 0 for size in value.shape[1:])],
            np.float16 if value.type == "tensor(float16)" else np.float32,
        )
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    tokens: list[int] = []
    step = prompt
    for _ in range(new_tokens):
        length = len(prompt) + len(tokens)
        inputs = {
            "input_ids": np.array([step], np.int64),
            "attention_mask": np.ones((1, length), np.int64),
        }
        logits, *present = session.run(None, inputs | cache)
        cache = dict(zip(cache, present, strict=True))  # outputs are in the order of the inputs
        step = [int(logits[0, -1].argmax())]
        if step[0] in eos_ids:
            break
        tokens += step
    return tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
