"""Weights of the graph, which are read from the checkpoint only when they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.errors import CheckpointError

FloatDtype = str
"""Dtype of weights that are not quantized; experts may be in bfloat16 in a model of any dtype."""

Read = Callable[[str], NDArray[Any]]
"""Function that reads a tensor of the checkpoint by name, in its stored dtype."""

CHUNK_BYTES = 16 << 20
"""Bytes of a weight that are converted at a time, in addition to the stored tensor."""


class ChunkedTensor(ir.LazyTensor):
    """Weight whose values are computed in chunks, anew for every reader.

    Args:
        name: Name of the initializer.
        dtype: Dtype of the initializer.
        shape: Shape of the initializer.
    """

    def __init__(self, name: str, dtype: ir.DataType, shape: Sequence[int]) -> None:
        super().__init__(
            lambda: ir.Tensor(self._values(), name=name),
            dtype=dtype,
            shape=ir.Shape(shape),
            name=name,
        )

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yields the values in memory order."""
        raise NotImplementedError

    def _values(self) -> NDArray[Any]:
        chunks = list(self.chunks())
        return (
            np.concatenate(chunks) if chunks else np.zeros(self.shape.numpy(), self.dtype.numpy())
        )


class CheckpointTensor(ChunkedTensor):
    """Weight that is read from the checkpoint, anew for every reader.

    Several tensors of the checkpoint may be concatenated along their first axis. A linear layer is
    stored as [outputs, inputs] and transposed to [inputs, outputs] for MatMul.

    Args:
        name: Name of the initializer.
        dtype: Dtype of the initializer.
        shape: Shape of the concatenated sources, before transposing.
        sources: Names of the tensors in the checkpoint.
        read: Function that reads one of them.
        transpose: True if the two axes are swapped.
        offset: Number added to every value, in float32.
    """

    def __init__(
        self,
        name: str,
        dtype: FloatDtype,
        shape: Sequence[int],
        sources: Sequence[str],
        read: Read,
        *,
        transpose: bool,
        offset: float = 0.0,
    ) -> None:
        self._offset = np.float32(offset)
        self._cast_to = np.dtype(dtype)
        super().__init__(
            name, ir.DataType.from_numpy(self._cast_to), shape[::-1] if transpose else shape
        )
        self.sources = tuple(sources)
        self._read = read
        self._transpose = transpose

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yields the values in memory order, a bounded number of rows at a time.

        Raises:
            CheckpointError: A source is missing or damaged, or a value does not fit the dtype.
        """
        parts = [self._read(source) for source in self.sources]
        stored = parts[0] if len(parts) == 1 else np.concatenate(parts)
        values = stored.T if self._transpose else stored
        row_bytes = self.nbytes // max(1, values.shape[0])
        rows_at_once = max(1, CHUNK_BYTES // max(1, row_bytes))
        for start in range(0, values.shape[0], rows_at_once):
            chunk = values[start : start + rows_at_once]
            if self._offset:
                chunk = chunk.astype(np.float32) + self._offset
            yield cast_values(self.name, chunk, self._cast_to)


def cast_values(name: str | None, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Casts a weight's values, in the memory order of C.

    Args:
        name: Name of the weight.
        values: Values in a dtype that fits into float32, as every stored dtype does.
        dtype: New dtype.

    Raises:
        CheckpointError: A value is too large for float16.
    """
    with np.errstate(over="ignore"):
        cast = values.astype(dtype, order="C")
    if dtype == np.float16 and not np.isfinite(cast).all():
        largest = float(np.abs(values.astype(np.float32)).max())
        raise CheckpointError(
            f"{name}: a value of magnitude {largest:g} does not fit float16; "
            "set export.dtype to float32"
        )
    return cast


def join_names(names: Sequence[str]) -> str:
    """Name for several concatenated tensors: their common prefix, then the parts that differ.

    >>> join_names(["a.q.bias", "a.k.bias"])
    'a.q.bias+k.bias'
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and len({tuple(part[: shared + 1]) for part in parts}) == 1:
        shared += 1
    return ".".join([*parts[0][:shared], "+".join(".".join(part[shared:]) for part in parts)])
