"""Token-by-token decoding with a KV cache that is copied by every step or updated in place.

Legend: B batch, S tokens of the prompts, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_export.ort.session import NUMPY_TYPES, OrtModel
from moe_export.ort.speculation import Speculation, taken
from moe_export.variants import present_name

GROWTH_TOKENS = 256
"""Tokens by which buffers get longer: copying them then costs little beside reading them."""

_GRAPHS = count(1)
"""Numbers of CUDA graphs; ONNX Runtime uses 0 by itself."""


class KVCache(Protocol):
    """Interface of a KV cache; all caches of one model give the same tokens."""

    def prompt(
        self, ids_BS: NDArray[np.int64], lengths_B: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Clears the cache and runs prompts padded on the right.

        Returns logits of each row's last real token, [B, V] float32.

        Args:
            ids_BS: Token ids, int64.
            lengths_B: Number of real tokens in each row, int64; None if rows have no padding.
        """

    def token(self, ids_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Runs one more token of each row and returns its logits [B, V] float32."""


class GrowingCache:
    """KV cache that every step copies into a new one, longer by a token.

    Args:
        model: Session that runs the steps.
        batch_size: Number of rows B.
    """

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
        return self._step(ids_B[:, None], self._values)

    def _step(self, ids_BS: NDArray[np.int64], values: dict[str, Any]) -> NDArray[np.float32]:
        mask = _mask(self._lengths_B, self._length)
        logits, self._values = self._model.step(ids_BS, mask, values, last_only=True)
        return last_logits(logits, self._lengths_B)


class StaticCache:
    """KV cache with one buffer per state, such as keys or values, updated in place by each step.

    On the CPU the buffers get longer by `GROWTH_TOKENS` when they are full. On a GPU they have
    their full length from the beginning: shapes and addresses of a step are the same for every
    token, as a CUDA graph requires. If the model was opened with CUDA graphs, the first step is
    captured. The graph holds the addresses of this cache, so every cache has its own graph.

    Args:
        model: Session that runs the steps.
        batch_size: Number of rows B.
        capacity: Largest number of tokens of a row, prompt and new tokens together.

    Attributes:
        room: Number of tokens of a row that the buffers have room for now.
    """

    def __init__(self, model: OrtModel, batch_size: int, capacity: int) -> None:
        self._model, self._capacity, self.room = model, capacity, 0
        self._lengths_B = np.zeros(batch_size, np.int64)
        self._values: dict[str, Any] = {}
        self._ids = self._on_device(np.zeros((batch_size, 1), np.int64))
        logits = model.session.get_outputs()[0]
        self._logits = self._on_device(
            np.zeros((batch_size, 1, logits.shape[-1]), NUMPY_TYPES[logits.type])
        )
        self._graph = next(_GRAPHS)
        self._make_room(1 if model.provider == "cpu" else capacity)

    def prompt(
        self, ids_BS: NDArray[np.int64], lengths_B: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """See `KVCache`."""
        self._lengths_B = _lengths(ids_BS, lengths_B)
        self._make_room(ids_BS.shape[1])
        self._clear_states()
        ids = self._on_device(ids_BS)
        mask = self._on_device(_mask(self._lengths_B, ids_BS.shape[1]))
        binding = self._bound(ids, mask)
        self._model.ask_for_last(binding)
        binding.bind_output(self._model.outputs[0])
        self._model.run(binding)
        logits = last_logits(binding.get_outputs()[-1].numpy(), self._lengths_B)
        return logits.astype(np.float32, copy=False)

    def token(self, ids_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `KVCache`."""
        self._lengths_B = self._lengths_B + 1
        self._make_room(int(self._lengths_B.max()))
        self._ids.update_inplace(np.ascontiguousarray(ids_B[:, None]))
        self._mask.update_inplace(_mask(self._lengths_B, self.room))
        self._model.run(self._step, self._graph)
        # On the CPU numpy() is a view of the buffer that the next step overwrites.
        logits: NDArray[np.float32] = self._logits.numpy()[:, 0].astype(np.float32)
        return logits

    def _make_room(self, tokens: int) -> None:
        """Makes the buffers long enough for rows of so many tokens; what they hold is kept."""
        assert tokens <= self._capacity, "the cache is full"
        if tokens <= self.room:
            return
        held = self.room
        self.room = min(self._capacity, -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS)
        if self._model.provider != "cpu":
            self.room = self._capacity
        # Memory of zeros is taken when it is written, so one old buffer at a time is there twice.
        for name, longer in self._model.zeros(len(self._lengths_B), self.room).items():
            if held and name in self._model.fixed_states:
                continue
            if held:
                longer[:, :, :held] = self._values[name].numpy()
            self._values[name] = self._on_device(longer)
        self._mask = self._on_device(_mask(self._lengths_B, self.room))
        self._step = self._bound(self._ids, self._mask)
        self._step.bind_ortvalue_output(self._model.outputs[0], self._logits)

    def _clear_states(self) -> None:
        """Sets the states of fixed size to zero; past keys and values are masked instead."""
        for name in self._model.fixed_states:
            self._values[name].update_inplace(np.zeros_like(self._values[name].numpy()))

    def extend(self, ids_S: Sequence[int]) -> NDArray[np.float32]:
        """Runs several more tokens of the only row; returns their logits [S, V] float32."""
        self._lengths_B = self._lengths_B + len(ids_S)
        length = int(self._lengths_B[0])
        self._make_room(length)
        mask = self._on_device(np.ones((1, length), np.int64))
        binding = self._bound(self._on_device(np.array([ids_S], np.int64)), mask)
        binding.bind_output(self._model.outputs[0])
        self._model.run(binding)
        logits: NDArray[np.float32] = binding.get_outputs()[-1].numpy()[0]
        return logits.astype(np.float32, copy=False)

    def drop(self, tokens: int) -> None:
        """Forgets the last tokens of every row, which no state of fixed size may have seen."""
        assert not tokens or not self._model.fixed_states
        self._lengths_B = self._lengths_B - tokens

    def _on_device(self, array: NDArray[Any]) -> Any:
        import onnxruntime  # noqa: PLC0415 - an extra

        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._model.provider, 0)

    def _bound(self, ids: Any, mask: Any) -> Any:
        """Binding of the inputs, and of each key and value as both input and output."""
        binding = self._model.session.io_binding()
        binding.bind_ortvalue_input("input_ids", ids)
        binding.bind_ortvalue_input("attention_mask", mask)
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(present_name(name), value)
        return binding


def open_cache(model: OrtModel, batch_size: int, capacity: int) -> KVCache:
    """Cache of the kind the model was opened with, for rows of at most `capacity` tokens."""
    if model.cache == "growing":
        return GrowingCache(model, batch_size)
    return StaticCache(model, batch_size, capacity)


def generate(
    model: OrtModel,
    prompt: list[int],
    new_tokens: int,
    eos_ids: list[int],
    speculation: Speculation | None = None,
) -> Iterator[int]:
    """Yields greedy tokens after a prompt, up to and including the first of `eos_ids`.

    Args:
        model: Session that runs the steps.
        prompt: Token ids of the prompt.
        new_tokens: Largest number of tokens.
        eos_ids: Tokens that end the text.
        speculation: Drafts from the text so far, for a static cache on the CPU. In float32 the
            tokens are the same without; int8 activations and float16 round what differs in the
            last bit, so that another of two nearly equal tokens may be chosen.
    """
    # The last token is not run, so it needs no room in the cache.
    cache = open_cache(model, 1, len(prompt) + new_tokens - 1)
    tokens = [int(cache.prompt(np.array([prompt], np.int64))[0].argmax())]
    left = new_tokens
    while True:
        for token in tokens:
            yield token
            left -= 1
            if token in eos_ids or left == 0:
                return
            if speculation is not None:
                speculation.add(token)
        tokens = _next(cache, tokens[-1], speculation, left - 1)


def _next(cache: KVCache, last: int, speculation: Speculation | None, room: int) -> list[int]:
    """Greedy tokens after the last one, at least one of them.

    Args:
        cache: Cache of one row, without the last token.
        last: Token that runs next.
        speculation: Drafts; None for one token.
        room: Largest number of tokens in a draft.
    """
    if speculation is not None:
        assert isinstance(cache, StaticCache), "only a static cache takes several tokens"
        draft = speculation.draft(room)
        if draft:
            started = time.perf_counter()
            tokens = taken(cache.extend([last, *draft]), draft)
            cache.drop(1 + len(draft) - len(tokens))
            speculation.ran_draft(len(draft), len(tokens), time.perf_counter() - started)
            if tokens:
                return tokens
    started = time.perf_counter()
    token = int(cache.token(np.array([last], np.int64))[0].argmax())
    if speculation is not None:
        speculation.ran_one(time.perf_counter() - started)
    return [token]


def last_logits(logits: NDArray[Any], lengths_B: NDArray[np.int64]) -> NDArray[Any]:
    """Logits [B, V] of each row's last real token, from those of it alone or of all positions.

    Args:
        logits: Logits [B, 1, V], or [B, S, V] of rows padded on the right.
        lengths_B: Number of real tokens in each row, int64.
    """
    last = lengths_B - 1 if logits.shape[1] > 1 else 0
    chosen: NDArray[Any] = logits[np.arange(len(logits)), last]
    return chosen


def _lengths(ids_BS: NDArray[np.int64], lengths_B: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return np.full(len(ids_BS), ids_BS.shape[1], np.int64) if lengths_B is None else lengths_B


def _mask(lengths_B: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Attention mask [B, length] int64: 1 for the real tokens of each row, 0 for padding."""
    return (np.arange(length) < lengths_B[:, None]).astype(np.int64)
