"""Keys and values of several sequences, in one buffer per layer with a row for each sequence.

A step runs on neighbouring rows in place. Their addresses are given to ONNX Runtime directly, so
that rows are added and removed without a copy.

Legend: B rows of a step, S new tokens of each row, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """Keys or values of one layer.

    Attributes:
        name: Name of the graph's input.
        value: ONNX Runtime's value [rows, heads, capacity, head_dim], which owns the memory.
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


class Slots:
    """Rows of a KV cache of fixed length.

    Args:
        model: Session that runs the steps.
        rows: Number of rows.
        capacity: Largest number of tokens of a row.

    Attributes:
        filled: Number of tokens in the cache, int64, one per row.

    Raises:
        RecipeError: The model has states of fixed size, which rows that take no part would change.
    """

    def __init__(self, model: OrtModel, rows: int, capacity: int) -> None:
        if model.fixed_states:
            raise RecipeError(
                f"the server cannot run a model with a state such as {min(model.fixed_states)}, "
                "which has no place for each token; use moe-export generate or the Python interface"
            )
        self._model, self._capacity = model, capacity
        self._buffers = [
            self._buffer(name, zeros) for name, zeros in model.zeros(rows, capacity).items()
        ]
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
        logits = self._run(first, ids_BS, _mask(lengths_B, ids_BS.shape[1]), last_only)
        return last_logits(logits, lengths_B)[:, None] if last_only else logits

    def chunk(self, row: int, ids_S: NDArray[np.int64], last_only: bool = False) -> NDArray[Any]:
        """Runs the next part of a prompt in one row.

        Returns:
            Logits [S, V] in the model's dtype; of the last position alone if `last_only`.
        """
        self.filled[row] += len(ids_S)
        mask = np.ones((1, self.filled[row]), np.int64)
        logits: NDArray[Any] = self._run(row, ids_S[None], mask, last_only)[0]
        return logits[-1:] if last_only else logits

    def token(self, ids_B: NDArray[np.int64], taking_B: NDArray[np.bool_]) -> NDArray[Any]:
        """Runs one more token of the first B rows.

        Rows that do not take part run too, and write after their last token, where the next token
        of the row will replace it.

        Args:
            ids_B: Token of each row, int64; any for a row that does not take part.
            taking_B: True for rows that take part.

        Returns:
            Logits [B, V] in the model's dtype.
        """
        rows = len(ids_B)
        lengths_B = self.filled[:rows] + 1
        mask = _mask(lengths_B, int(lengths_B.max()))
        logits_BSV = self._run(0, ids_B[:, None], mask)
        self.filled[:rows] += taking_B
        return logits_BSV[:, 0]

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
