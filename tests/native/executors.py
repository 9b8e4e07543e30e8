"""Two more ways to execute a `RaggedMoE` node: the library in ONNX Runtime, and by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from moe_export.formats import FORMATS
from moe_export.op import spec
from moe_export.op.library import register
from moe_export.op.reference import Expert, Weight
from tests.native.c_library import CLayer
from tests.op.cases import Inputs, Kind
from tests.op.executors import feeds, one_node_model


def _kernels_of_this_processor() -> tuple[str, ...]:
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    avx2 = {"avx2", "fma", "f16c"}
    avx512 = avx2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
    needs = {"portable": set(), "avx2": avx2, "avx512": avx512}
    return tuple(name for name, needed in needs.items() if needed <= flags)


KERNELS = _kernels_of_this_processor()
FASTEST = KERNELS[-1]


def native_session(
    library: Path, model: onnx.ModelProto, num_threads: int = 2
) -> onnxruntime.InferenceSession:
    """A session with the library registered."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    register(options, library)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_in_onnx_runtime(library: Path, inputs: Inputs) -> NDArray[Any]:
    """By the library, in a model that has the function too."""
    y: NDArray[Any] = native_session(library, one_node_model(inputs)).run(None, feeds(inputs))[0]
    return y


def layer_of(
    library: Path, inputs: Inputs, kernel: str | None = None, *, exact_activations: bool = False
) -> CLayer:
    """The experts of `inputs`, packed."""
    return CLayer(
        library,
        inputs.weights,
        num_experts=len(inputs.experts),
        format_name=inputs.format_name,
        x_dtype=inputs.x.dtype.name,
        group_size=inputs.group_size,
        activation=inputs.activation,
        kernel=kernel,
        exact_activations=exact_activations,
    )


def run_kernel(
    library: Path,
    inputs: Inputs,
    kernel: str | None = None,
    num_threads: int = 1,
    *,
    exact_activations: bool = False,
) -> NDArray[Any]:
    """By a kernel of the library, without ONNX Runtime."""
    return layer_of(library, inputs, kernel, exact_activations=exact_activations).run(
        inputs.x,
        inputs.expert_indices,
        inputs.routing_weights,
        inputs.shared_weight,
        num_threads=num_threads,
    )


def random_inputs(random: np.random.Generator, kind: Kind) -> Inputs:
    """Inputs of random sizes, widths and routing."""
    dtype, format_name, group_size = kind
    num_experts, hidden = int(random.integers(1, 6)), int(random.integers(1, 140))
    tokens, top_k = int(random.integers(0, 20)), int(random.integers(1, num_experts + 1))

    activation = spec.ACTIVATIONS[int(random.integers(0, len(spec.ACTIVATIONS)))]

    def normal(*shape: int, scale: float = 1) -> NDArray[Any]:
        return (random.standard_normal(shape) * scale).astype(dtype)

    def weight(rows: int, columns: int, scale: float) -> Weight:
        matrix = normal(rows, columns, scale=scale)
        if format_name in spec.QUANTIZED_FORMATS:
            return FORMATS[format_name](matrix, group_size, dtype)
        return matrix.astype(ml_dtypes.bfloat16) if format_name == "bfloat16" else matrix

    def expert(width: int) -> Expert:
        across, back = hidden**-0.5, max(width, 1) ** -0.5
        into = len(spec.expert_inputs(activation)) - 1
        return (
            *(weight(hidden, width, across) for _ in range(into)),
            weight(width, hidden, back),
        )

    widths = random.integers(0, 100, num_experts) * random.integers(0, 2, num_experts)
    has_shared = bool(random.integers(0, 2))
    return Inputs(
        normal(tokens, hidden),
        random.integers(0, num_experts, (tokens, top_k)),
        normal(tokens, top_k),
        tuple(expert(width) for width in widths),
        expert(int(random.integers(0, 100))) if has_shared else None,
        normal(tokens, 1) if has_shared else None,
        format_name,
        group_size,
        activation,
    )
