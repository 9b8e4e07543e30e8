"""Matrix that expands latent vectors, cut into one matrix of keys and one of values per head.

Legend: H heads, N entries of a key that are not rotated, V entries of a value, R entries of the
latent vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec
from moe_export.graph.quantized import stored_matrix
from moe_export.graph.weights import ChunkedTensor, Read, cast_values
from moe_export.op.spec import Dtype


class LatentWeight(ChunkedTensor):
    """Keys' part [H, N, R] or values' part [H, R, V] of a layer's expanding matrix.

    Its values are floats also where the checkpoint holds codes: heads are multiplied one by one,
    and keys along the axis across which scales change.

    Args:
        name: Name of the initializer.
        part: `key` or `value`.
        source: Name of the matrix [H * (N + V), R] in the checkpoint.
        spec: Sizes and formats of the model.
        dtype: Dtype of the initializer.
        read: Function that reads a tensor of the checkpoint by name.
    """

    def __init__(
        self,
        name: str,
        part: Literal["key", "value"],
        source: str,
        spec: ModelSpec,
        dtype: Dtype,
        read: Read,
    ) -> None:
        latent = spec.latent
        assert latent is not None
        self._part, self._source, self._spec, self._read = part, source, spec, read
        self._cast_to, self._sizes = np.dtype(dtype), latent
        shapes = {
            "key": (spec.num_heads, latent.nope_dim, latent.key_rank),
            "value": (spec.num_heads, latent.key_rank, latent.value_dim),
        }
        super().__init__(name, ir.DataType.from_numpy(self._cast_to), shapes[part])

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yields the matrix of each head.

        Raises:
            CheckpointError: The source is missing or damaged, or a value does not fit the dtype.
        """
        nope = self._sizes.nope_dim
        rows = nope + self._sizes.value_dim
        stored = self._stored()
        for start in range(0, len(stored), rows):
            if self._part == "key":
                head = stored[start : start + nope]
            else:
                head = stored[start + nope : start + rows].T
            yield cast_values(self.name, head, self._cast_to)[None]

    def _stored(self) -> NDArray[Any]:
        tensor = self._spec.tensors[self._source]
        format_name = self._spec.quantization.format_of(tensor.role, tensor.layer)
        if format_name is None:
            return self._read(self._source)
        matrix = stored_matrix(self._spec, [self._source], format_name, self._read)
        return matrix.dequantized().T
