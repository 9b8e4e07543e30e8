"""Runs the code of an exported model's card in its folder, and prints what it did as JSON.

It needs what that code needs and no more, so that it runs where only ONNX Runtime, tokenizers and,
if installed, moe-export-ops are.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


def card_code() -> str:
    """The card's code for plain ONNX Runtime."""
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text("utf-8"), re.DOTALL)
    return next(block for block in blocks if "import onnxruntime as ort" in block)


def kernel(library: str) -> str:
    """Kernels that a library takes here, and its reason."""
    message = ctypes.create_string_buffer(1024)
    ctypes.CDLL(library).moe_export_describe(message, ctypes.c_size_t(1024))
    return message.value.decode()


def prompt_logits(library: str, prompt: list[int]) -> np.ndarray[Any, Any]:
    """Logits of every position of a prompt, computed by a library."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(library)
    session = ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    past = {
        i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past")
    }
    ids = np.array([prompt])
    logits: np.ndarray[Any, Any] = session.run(
        ["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids), **past}
    )[0]
    return logits


def main() -> None:
    """Runs the card's code as it stands, then the prompt alone."""
    names: dict[str, Any] = {}
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(card_code(), names)
    name = names["libraries"][names["system"]]
    library = f"./{name}"
    logits = prompt_logits(library, names["prompt"])
    found = {
        "library": name,
        "kernel": kernel(library),
        "text": shown.getvalue(),
        "prompt": names["prompt"],
        "answer": names["answer"],
        "logits": logits.tolist(),
        "installed_equal": None,
    }
    if find_spec("moe_export_ops") is not None:
        import moe_export_ops  # noqa: PLC0415 - on the emulated machine alone

        other = prompt_logits(moe_export_ops.library_path(), names["prompt"])
        found["installed_equal"] = bool(np.array_equal(logits, other))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
