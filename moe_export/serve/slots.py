"""Keys, values and states of several sequences, in one buffer each with a row for each sequence.

A step runs on neighbouring rows in place. Their addresses are given to ONNX Runtime directly, so
that rows are added and removed without a copy. A token in a row that takes no part is written where
the row's next one will be; a state of fixed size has no such place, so a step leaves the row out.

Legend: B rows of a step, S new tokens of each row, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import RecipeError
from moe_export.ort.decoding import last_logits
from moe_export.ort.session import OrtModel
from moe_export.variants import present_name


@dataclass(frozen=True)
class Buffer:
    """Keys, values or a state of one layer.

    Attributes:
        name: Name of the graph's input.
        value: ONNX Runtime's value [rows, heads, capacity, head_dim], or with the axes of a state,
            which owns the memory.
        row_shape: Shape of a row.
        dtype: Dtype of the entries.
        row_bytes: Size of a row in bytes.
    """

    name: str
    value: Any
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    row_bytes: int

    def bind(self, binding: Any, provider: str, first: int, rows: int) -> None:
        """Binds neighbouring rows as both input and output."""
        shape = (rows, *self.row_shape)
        address = self.value.data_ptr() + first * self.row_bytes
        binding.bind_input(self.name, provider, 0, self.dtype, shape, address)
        binding.bind_output(present_name(self.name), provider, 0, self.dtype, shape, address)

    def clear(self, first: int, rows: int) -> None:
        """Sets neighbouring rows in the memory of the CPU to zero."""
        ctypes.memset(self.value.data_ptr() + first * self.row_bytes, 0, rows * self.row_bytes)


class Slots:
    """Rows of a cache of fixed length.

    Args:
        model: Session that runs the steps.
        rows: Number of rows.
        capacity: Largest number of tokens of a row.

    Attributes:
        filled: Number of tokens in the cache, int64, one per row.

    Raises:
        RecipeError: The model has states of fixed size and does not run on the CPU.
    """

    def __init__(self, model: OrtModel, rows: int, capacity: int) -> None:
        if model.fixed_states and model.provider != "cpu":
            raise RecipeError(
                f"the server runs a model with a state such as {min(model.fixed_states)} on the "
                f"provider cpu alone, not {model.provider}; leave --provider out"
            )
        self._model, self._capacity = model, capacity
        self._buffers = [
            self._buffer(name, zeros) for name, zeros in model.zeros(rows, capacity).items()
        ]
        self._states = [each for each in self._buffers if each.name in model.fixed_states]
        self.filled = np.zeros(rows, np.int64)

    def prompts(
        self,
        first: int,
        ids_BS: NDArray[np.int64],
        lengths_B: NDArray[np.int64],
        last_only: bool = False,
    ) -> NDArray[Any]:
        """Runs whole prompts in neighbouring rows, padded on the right.

        Returns:
            Logits [B, S, V] in the model's dtype, or [B, 1, V] of each row's last token.
        """
        self.filled[first : first + len(ids_BS)] = lengths_B
        self._clear_states(first, len(ids_BS))
        logits = self._run(first, ids_BS, _mask(lengths_B, ids_BS.shape[1]), last_only)
        return last_logits(logits, lengths_B)[:, None] if last_only else logits

    def chunk(self, row: int, ids_S: NDArray[np.int64], last_only: bool = False) -> NDArray[Any]:
        """Runs the next part of a prompt in one row.

        Returns:
            Logits [S, V] in the model's dtype; of the last position alone if `last_only`.
        """
        if not self.filled[row]:
            self._clear_states(row, 1)
        self.filled[row] += len(ids_S)
        mask = np.ones((1, self.filled[row]), np.int64)
        logits: NDArray[Any] = self._run(row, ids_S[None], mask, last_only)[0]
        return logits[-1:] if last_only else logits

    def token(self, ids_B: NDArray[np.int64], taking_B: NDArray[np.bool_]) -> NDArray[Any]:
        """Runs one more token of the first B rows.

        Rows that do not take part may run too.

        Args:
            ids_B: Token of each row, int64; any for a row that does not take part.
            taking_B: True for rows that take part.

        Returns:
            Logits [B, V] in the model's dtype; any for a row that does not take part.
        """
        parts = list(self._together(taking_B))
        logits = [self._token(part.start, ids_B[part]) for part in parts]
        self.filled[: len(ids_B)] += taking_B
        if len(parts) == 1 and parts[0] == slice(0, len(ids_B)):
            return logits[0]
        logits_BV = np.zeros((len(ids_B), logits[0].shape[1]), logits[0].dtype)
        for part, logits_PV in zip(parts, logits, strict=True):
            logits_BV[part] = logits_PV
        return logits_BV

    def _together(self, taking_B: NDArray[np.bool_]) -> Iterator[slice]:
        """Neighbouring rows that run together: without those whose states a token would change."""
        apart_B = (self.filled[: len(taking_B)] > 0) & ~taking_B & bool(self._states)
        for before, after in pairwise([-1, *np.flatnonzero(apart_B), len(taking_B)]):
            part = slice(before + 1, after)
            if taking_B[part].any():
                yield part

    def _token(self, first: int, ids_B: NDArray[np.int64]) -> NDArray[Any]:
        """Runs one more token of neighbouring rows; returns logits [B, V]."""
        lengths_B = self.filled[first : first + len(ids_B)] + 1
        logits_BSV = self._run(first, ids_B[:, None], _mask(lengths_B, int(lengths_B.max())))
        logits_BV: NDArray[Any] = logits_BSV[:, 0]
        return logits_BV

    def _clear_states(self, first: int, rows: int) -> None:
        for state in self._states:
            state.clear(first, rows)

    def _run(
        self,
        first: int,
        ids_BS: NDArray[np.int64],
        mask: NDArray[np.int64],
        last_only: bool = False,
    ) -> NDArray[Any]:
        import onnxruntime  # noqa: PLC0415 - an extra

        binding = self._model.session.io_binding()
        for name, array in (("input_ids", ids_BS), ("attention_mask", mask)):
            binding.bind_ortvalue_input(
                name, onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            )
        for buffer in self._buffers:
            buffer.bind(binding, self._model.provider, first, len(ids_BS))
        if last_only:
            self._model.ask_for_last(binding)
        binding.bind_output(self._model.outputs[0])
        self._model.run(binding)
        logits: NDArray[Any] = binding.get_outputs()[-1].numpy()
        return logits

    def _buffer(self, name: str, zeros: NDArray[Any]) -> Buffer:
        import onnxruntime  # noqa: PLC0415 - an extra

        value = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, self._model.provider, 0)
        row_shape = zeros.shape[1:]
        return Buffer(name, value, row_shape, zeros.dtype, prod(row_shape) * zeros.itemsize)


def _mask(lengths_B: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Attention mask [B, length] int64: 1 for the real tokens of each row, 0 for padding."""
    return (np.arange(length) < lengths_B[:, None]).astype(np.int64)
