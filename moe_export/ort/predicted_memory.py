"""Predicted memory of a running model."""

from __future__ import annotations

from moe_export.families.base import ModelSpec
from moe_export.families.states import fixed_bytes, token_bytes
from moe_export.families.stored import format_in
from moe_export.formats import GRIDS
from moe_export.op.spec import Dtype
from moe_export.quantization import DENSE_ROLES, EXPERT_ROLES

FLOAT_ROLES = frozenset({"kv_expand"})
"""Roles of the matrices that exports hold as floats and ONNX Runtime multiplies, always."""

RUNTIME_BYTES = 24_700_000
"""Bytes that a session of ONNX Runtime 1.32 and a short generation hold on the CPU besides weights:
23.3 to 25.8 MB over 16 measurements on two machines of the demo model's exports, least for the
baseline and most for int4, whose graph has more nodes.
"""


def predicted_resident(weights_bytes: int) -> int:
    """Steady resident memory of a loaded model on the CPU, without the KV cache of a long context.

    Weights are in memory once: as pages of the file, or as the copy that a kernel made.

    Args:
        weights_bytes: Size of `model.onnx.data` in bytes.
    """
    return RUNTIME_BYTES + weights_bytes


def folded_bytes(spec: ModelSpec) -> int:
    """Extra bytes of a session on the CPU without the native library.

    ONNX Runtime then keeps weights with a codebook and experts in bfloat16 as float32, in a float16
    model too.
    """
    names = {name for name, grid in GRIDS.items() if grid.codebook is not None}
    elements = sum(
        tensor.elements
        for name, tensor in spec.tensors.items()
        if format_in(spec, name) in names or spec.quantization.float_of(tensor.role, tensor.layer)
    )
    return 4 * elements


def library_roles(*, native: bool, panels: bool) -> frozenset[str]:
    """Roles of the matrices that the native library multiplies, in the format that they have.

    Args:
        native: True if the library runs its operators.
        panels: True if matrices outside the experts are its operators too, see `uses_panels`.
    """
    if not native:
        return frozenset()
    return EXPERT_ROLES | (DENSE_ROLES | {"lm_head"} if panels else frozenset())


def widened_bytes(spec: ModelSpec, dtype: Dtype, in_library: frozenset[str]) -> int:
    """Extra bytes of a float16 session on the CPU, whose MatMul and Gemm have float32 alone.

    ONNX Runtime converts their weights when it loads and drops the float16 ones. Embeddings that
    are the head too stay beside their copy, because a lookup takes them as they are.

    Args:
        spec: Sizes and formats of the exported model.
        dtype: Dtype of everything that is not quantized.
        in_library: Roles that ONNX Runtime does not multiply, see `library_roles`.
    """
    if dtype != "float16":
        return 0
    return sum(
        tensor.elements * _widening(spec, tensor.role)
        for name, tensor in spec.tensors.items()
        if len(tensor.shape) == 2
        and (tensor.role in FLOAT_ROLES or _is_float(spec, name, in_library))
    )


def _is_float(spec: ModelSpec, name: str, in_library: frozenset[str]) -> bool:
    """True for a matrix that ONNX Runtime multiplies in the model's dtype."""
    tensor = spec.tensors[name]
    return (
        tensor.role not in in_library
        and format_in(spec, name) is None
        and spec.quantization.float_of(tensor.role, tensor.layer) is None
    )


def _widening(spec: ModelSpec, role: str) -> int:
    """Extra bytes per element of a float16 matrix."""
    if role != "embedding":
        return 2
    return 4 if spec.tied_embeddings else 0


def kv_cache_bytes(spec: ModelSpec, dtype: Dtype, context_tokens: int) -> int:
    """Bytes of the cache of one sequence: keys, values, and states of fixed size.

    Args:
        spec: Sizes of the model; pruning does not change the result.
        dtype: Dtype of the exported model.
        context_tokens: Length of the sequence in tokens.
    """
    return token_bytes(spec, dtype) * context_tokens + fixed_bytes(spec, dtype)
