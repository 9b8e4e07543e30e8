"""What a running model will hold in memory, before it is run."""

from __future__ import annotations

import numpy as np

from moe_export.families.base import ModelSpec
from moe_export.families.stored import format_in
from moe_export.formats import GRIDS
from moe_export.op.spec import Dtype

RUNTIME_BYTES = 23_500_000
"""What a session of ONNX Runtime 1.32 and a short generation hold beside the weights on the CPU:
22.2 to 24.7 MB over 20 exports of the demo model in four widths and three formats.
"""


def predicted_resident(weights_bytes: int) -> int:
    """Steady resident memory of a loaded model on the CPU, the KV cache of a long context apart.

    Weights are held once: pages of the file that were read, or the copy that a kernel made.

    Args:
        weights_bytes: size of `model.onnx.data`.
    """
    return RUNTIME_BYTES + weights_bytes


def folded_bytes(spec: ModelSpec) -> int:
    """What a session on the CPU holds besides, where the function runs formats with a codebook or
    experts in bfloat16: their weights in float32, in a model of float16 too.
    """
    names = {name for name, grid in GRIDS.items() if grid.codebook is not None}
    elements = sum(
        tensor.elements
        for name, tensor in spec.tensors.items()
        if format_in(spec, name) in names or spec.quantization.float_of(tensor.role, tensor.layer)
    )
    return 4 * elements


def kv_cache_bytes(spec: ModelSpec, dtype: Dtype, context_tokens: int) -> int:
    """Keys and values of one sequence.

    Args:
        spec: of the model, pruned or not: pruning does not change it.
        dtype: of the exported model.
        context_tokens: its length.
    """
    per_token = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
    return per_token * context_tokens * np.dtype(dtype).itemsize
