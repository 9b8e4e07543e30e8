"""What CUDA needs on this machine, and which part of it is missing, by name."""

from __future__ import annotations

import ctypes
import os
import re
from importlib.util import find_spec
from pathlib import Path

import onnx

from moe_export.errors import DependencyError
from moe_export.op.library import describe_cuda
from moe_export.op.spec import PACKED_NAME

PROVIDER_LIBRARY = "libonnxruntime_providers_cuda.so"

_SOURCES = {
    "libcuda.so": "the NVIDIA driver",
    "libcudart.so": "the package nvidia-cuda-runtime",
    "libcublas": "the package nvidia-cublas",
    "libcurand.so": "the package nvidia-curand",
    "libcufft.so": "the package nvidia-cufft",
    "libcudnn": "the package nvidia-cudnn",
}
"""Beginning of a library's name to what brings it."""


def require_cuda_libraries() -> None:
    """Makes sure that ONNX Runtime's CUDA provider can be loaded.

    Raises:
        DependencyError: a library is missing; it is named, and what brings it.
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
    # Libraries that came as Python packages are not where the system looks for them.
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls(directory="")
    try:
        ctypes.CDLL(str(provider), mode=os.RTLD_LAZY)
    except OSError as error:
        raise DependencyError(f"CUDA cannot start: {explain(str(error))}") from error


def require_cuda_kernels() -> None:
    """Makes sure that the native library finds a driver that can run its kernels.

    Raises:
        DependencyError: it does not, or the library is absent.
    """
    problem = describe_cuda()
    if problem is not None:
        raise DependencyError(f"the native library cannot use CUDA: {problem}")


def require_cuda_model(path: Path) -> None:
    """Makes sure that the CUDA provider runs an exported model itself.

    What it has no kernel for ONNX Runtime would run on the CPU, with copies to and fro, and say
    nothing.

    Raises:
        DependencyError: the model's attention or its experts would run on the CPU.
    """
    graph = onnx.load(path, load_external_data=False).graph
    if any(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in graph.input):
        raise DependencyError(
            f"{path} is in float32, in which ONNX Runtime's CUDA provider has no attention; set "
            "export.dtype to float16 and export again, or run on the CPU"
        )
    if any(node.op_type == PACKED_NAME for node in graph.node):
        raise DependencyError(
            f"{path} holds its experts in the layout of the CPU's kernels; set export.layout to "
            "portable and export again, or run on the CPU"
        )


def explain(message: str) -> str:
    """The loader's words in ours.

    >>> explain("libcurand.so.10: cannot open shared object file: No such file or directory")
    'libcurand.so.10 is not found; the package nvidia-curand brings it (moe-export[gpu])'
    """
    found = re.match(r"(lib[\w.+-]+): cannot open shared object file", message)
    if found is None:
        return message
    name = found[1]
    source = next((text for start, text in _SOURCES.items() if name.startswith(start)), None)
    if source is None:
        return f"{name} is not found"
    extra = " (moe-export[gpu])" if source.startswith("the package") else ""
    return f"{name} is not found; {source} brings it{extra}"
