"""Exported decoders that tests run step by step, as a runtime does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from moe_export.checkpoint import Checkpoint
from moe_export.families import spec_of
from moe_export.graph import build_decoder, save_model
from moe_export.op.library import register
from moe_export.op.spec import Dtype, Layout, LinearWord


def exported(
    checkpoint_dir: Path,
    out: Path,
    dtype: Dtype = "float32",
    layout: Layout = "portable",
    linear: LinearWord = "auto",
) -> Path:
    """Builds and writes a model."""
    checkpoint = Checkpoint(checkpoint_dir)
    out.mkdir(parents=True)
    spec = spec_of(checkpoint.config)
    save_model(build_decoder(spec, dtype, checkpoint, layout, linear), out)
    return out


class Decoder:
    """Session of ONNX Runtime with its KV cache; stock, or with the native library."""

    def __init__(self, directory: Path, *, native: bool = False, file: str = "model.onnx") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if native:
            register(options)
        self.session = onnxruntime.InferenceSession(
            directory / file, options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self.session.get_outputs()]
        self._cache: dict[str, NDArray[Any]] = {}
        self._mask = np.zeros((0, 0), dtype=np.int64)

    def start(self, ids: NDArray[np.int64], mask: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Logits of a prompt, with an empty cache before it."""
        self._mask = np.zeros((len(ids), 0), dtype=np.int64)
        self._cache = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past_key_values."):
                dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[value.type]
                axes = {"batch_size": len(ids), "past_sequence_length": 0}
                shape = tuple(axes.get(axis, axis) for axis in value.shape)
                self._cache[value.name] = np.zeros(shape, dtype=dtype)
        return self.go_on(ids, mask)

    def go_on(self, ids: NDArray[np.int64], mask: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Logits of further tokens."""
        new = np.ones(ids.shape, dtype=np.int64) if mask is None else mask
        self._mask = np.concatenate([self._mask, new], axis=1)
        feeds = {"input_ids": ids, "attention_mask": self._mask, **self._cache}
        results = dict(zip(self._outputs, self.session.run(None, feeds), strict=True))
        self._cache = {
            name: results[name.replace("past_key_values", "present")] for name in self._cache
        }
        logits: NDArray[Any] = results["logits"]
        return logits

    def greedy(self, prompt: NDArray[np.int64], steps: int) -> list[int]:
        """Most likely continuation of one prompt [1, S]."""
        logits = self.start(prompt)
        tokens = []
        for _ in range(steps):
            tokens.append(int(logits[0, -1].argmax()))
            logits = self.go_on(np.array([tokens[-1:]], dtype=np.int64))
        return tokens
