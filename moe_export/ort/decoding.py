"""Decoding token by token through the KV cache, and the ways in which the cache is held.

Legend: B batch, S tokens of the prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_export.ort.session import NUMPY_TYPES, OrtModel

_GRAPHS = count(1)
"""Numbers of CUDA graphs; 0 is the one that ONNX Runtime takes by itself."""


class KVCache(Protocol):
    """What decoding is done through; two caches of one model give the same tokens."""

    def prompt(
        self, ids_BS: NDArray[np.int64], lengths_B: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Forgets everything and takes prompts, padded on the right; logits [B, S, V].

        Args:
            ids_BS: tokens.
            lengths_B: how many of a row count; all of them if None.
        """

    def token(self, ids_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes one more token of each row; logits [B, V]."""


class GrowingCache:
    """Every step gives a new cache that is longer by a token."""

    def __init__(self, model: OrtModel, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._length, self._lengths_B = 0, np.zeros(batch_size, np.int64)
        self._values: dict[str, Any] = {}

    def prompt(
        self, ids_BS: NDArray[np.int64], lengths_B: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """See `KVCache`."""
        self._length, self._lengths_B = ids_BS.shape[1], _lengths(ids_BS, lengths_B)
        return self._step(ids_BS, self._model.empty_cache(self._batch_size))

    def token(self, ids_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `KVCache`."""
        self._length += 1
        self._lengths_B = self._lengths_B + 1
        return self._step(ids_B[:, None], self._values)[:, 0]

    def _step(self, ids_BS: NDArray[np.int64], values: dict[str, Any]) -> NDArray[np.float32]:
        mask = _mask(self._lengths_B, self._length)
        logits, self._values = self._model.step(ids_BS, mask, values)
        return logits


class StaticCache:
    """One buffer of full length for each key and value, which a step reads and writes in place.

    All shapes and addresses of a step are then the same for every token, as a CUDA graph needs:
    where the model was opened for one, the step is captured the first time. A graph holds this
    cache's addresses, so each cache has its own.

    Args:
        model: the model.
        batch_size: B.
        capacity: tokens of a row, prompt and new ones.
    """

    def __init__(self, model: OrtModel, batch_size: int, capacity: int) -> None:
        self._model, self._capacity = model, capacity
        self._lengths_B = np.zeros(batch_size, np.int64)
        self._values = {
            name: self._on_device(zeros)
            for name, zeros in model.zeros(batch_size, capacity).items()
        }
        self._ids = self._on_device(np.zeros((batch_size, 1), np.int64))
        self._mask = self._on_device(np.zeros((batch_size, capacity), np.int64))
        logits = model.session.get_outputs()[0]
        self._logits = self._on_device(
            np.zeros((batch_size, 1, logits.shape[-1]), NUMPY_TYPES[logits.type])
        )
        self._step = self._bound(self._ids, self._mask)
        self._step.bind_ortvalue_output(logits.name, self._logits)
        self._graph = next(_GRAPHS)

    def prompt(
        self, ids_BS: NDArray[np.int64], lengths_B: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """See `KVCache`."""
        self._lengths_B = _lengths(ids_BS, lengths_B)
        ids = self._on_device(ids_BS)
        mask = self._on_device(_mask(self._lengths_B, ids_BS.shape[1]))
        binding = self._bound(ids, mask)
        binding.bind_output(self._model.outputs[0])
        self._model.run(binding)
        logits: NDArray[np.float32] = binding.get_outputs()[-1].numpy()
        return logits.astype(np.float32, copy=False)

    def token(self, ids_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `KVCache`."""
        self._lengths_B = self._lengths_B + 1
        assert self._lengths_B.max() <= self._capacity, "the cache is full"
        self._ids.update_inplace(np.ascontiguousarray(ids_B[:, None]))
        self._mask.update_inplace(_mask(self._lengths_B, self._capacity))
        self._model.run(self._step, self._graph)
        # On the CPU numpy() is a view of what the next step writes.
        logits: NDArray[np.float32] = self._logits.numpy()[:, 0].astype(np.float32)
        return logits

    def _on_device(self, array: NDArray[Any]) -> Any:
        import onnxruntime  # noqa: PLC0415 - an extra

        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._model.provider, 0)

    def _bound(self, ids: Any, mask: Any) -> Any:
        """Inputs, and each key and value both before and after the step."""
        binding = self._model.session.io_binding()
        binding.bind_ortvalue_input("input_ids", ids)
        binding.bind_ortvalue_input("attention_mask", mask)
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), value)
        return binding


def open_cache(model: OrtModel, batch_size: int, capacity: int) -> KVCache:
    """A cache of the kind that the model was opened with, for rows of at most `capacity` tokens."""
    if model.cache == "growing":
        return GrowingCache(model, batch_size)
    return StaticCache(model, batch_size, capacity)


def generate(
    model: OrtModel, prompt: list[int], new_tokens: int, eos_ids: list[int]
) -> Iterator[int]:
    """Greedy tokens after a prompt, ending early with one of `eos_ids`, which is given too."""
    # The last token is given and never taken.
    cache = open_cache(model, 1, len(prompt) + new_tokens - 1)
    last_V = cache.prompt(np.array([prompt], np.int64))[0, -1]
    for number in range(1, new_tokens + 1):
        token = int(last_V.argmax())
        yield token
        if token in eos_ids or number == new_tokens:
            return
        last_V = cache.token(np.array([token], np.int64))[0]


def _lengths(ids_BS: NDArray[np.int64], lengths_B: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return np.full(len(ids_BS), ids_BS.shape[1], np.int64) if lengths_B is None else lengths_B


def _mask(lengths_B: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """1 for the first tokens of each row, and 0 for what is behind them."""
    return (np.arange(length) < lengths_B[:, None]).astype(np.int64)
