"""Checks that CUDA can run here; an error names the missing part."""

from __future__ import annotations

import ctypes
import os
import re
from importlib.util import find_spec
from pathlib import Path

import onnx

from moe_export.errors import DependencyError
from moe_export.op.library import describe_cuda
from moe_export.op.spec import DOMAIN, LINEAR_NAME, LINEAR_PACKED_NAME, PACKED_NAME

PROVIDER_LIBRARY = "libonnxruntime_providers_cuda.so"

_SOURCES = {
    "libcuda.so": "the NVIDIA driver",
    "libcudart.so": "the package nvidia-cuda-runtime",
    "libcublas": "the package nvidia-cublas",
    "libcurand.so": "the package nvidia-curand",
    "libcufft.so": "the package nvidia-cufft",
    "libcudnn": "the package nvidia-cudnn",
}
"""Prefix of a library's name to the software that provides it."""


def require_cuda_libraries() -> None:
    """Checks that ONNX Runtime's CUDA provider can be loaded.

    Raises:
        DependencyError: A library is missing; the message names it and the software it is part of.
    """
    import onnxruntime  # noqa: PLC0415 - an extra

    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    provider = Path(spec.origin).parent / "capi" / PROVIDER_LIBRARY
    if not provider.is_file():
        raise DependencyError(
            "the installed ONNX Runtime has no CUDA provider; install moe-export[gpu] in place of "
            "moe-export[cpu]"
        )
    # The system's loader does not search the folders of Python packages.
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls(directory="")
    try:
        ctypes.CDLL(str(provider), mode=os.RTLD_LAZY)
    except OSError as error:
        raise DependencyError(f"CUDA cannot start: {explain(str(error))}") from error


def require_cuda_kernels() -> None:
    """Checks that the native library finds a driver that can run its kernels.

    Raises:
        DependencyError: There is no such driver, or the library is absent.
    """
    problem = describe_cuda()
    if problem is not None:
        raise DependencyError(f"the native library cannot use CUDA: {problem}")


def require_cuda_model(path: Path, operator: str) -> None:
    """Checks that the CUDA provider has kernels for the attention and weights of an exported model.

    Without this check, ONNX Runtime would silently run nodes without a CUDA kernel on the CPU.

    Args:
        path: File of the model.
        operator: `native` or `portable`, as in the recipe's `validate.operator`.

    Raises:
        DependencyError: The model's attention or its matrices would run on the CPU.
    """
    graph = onnx.load(path, load_external_data=False).graph
    if any(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in graph.input):
        raise DependencyError(
            f"{path} is in float32, in which ONNX Runtime's CUDA provider has no attention; set "
            "export.dtype to float16 and export again, or run on the CPU"
        )
    kinds = {node.op_type for node in graph.node if node.domain == DOMAIN}
    if kinds & {PACKED_NAME, LINEAR_PACKED_NAME}:
        raise DependencyError(
            f"{path} holds weights in the layout of the CPU's kernels; set export.layout to "
            "portable and export again, or run on the CPU"
        )
    if operator == "native" and LINEAR_NAME in kinds:
        raise DependencyError(
            f"{path} has Linear nodes, which have kernels for the CPU only; set export.linear to "
            "standard and export again, set validate.operator to portable, or run on the CPU"
        )


def explain(message: str) -> str:
    """Sentence for an error message of the dynamic loader.

    >>> explain("libcurand.so.10: cannot open shared object file: No such file or directory")
    'libcurand.so.10 is not found; the package nvidia-curand brings it (moe-export[gpu])'
    """
    missing = re.match(r"(lib[\w.+-]+): cannot open shared object file", message)
    if missing is None:
        return message
    name = missing[1]
    source = next((text for start, text in _SOURCES.items() if name.startswith(start)), None)
    if source is None:
        return f"{name} is not found"
    extra = " (moe-export[gpu])" if source.startswith("the package") else ""
    return f"{name} is not found; {source} brings it{extra}"
