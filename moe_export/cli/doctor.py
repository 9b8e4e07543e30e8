"""`moe-export doctor`: installed packages, and the kernels and providers that can run here."""

from __future__ import annotations

from collections.abc import Iterator

from moe_export.errors import DependencyError
from moe_export.op.library import describe, describe_cuda
from moe_export.ort.session import PROVIDERS, require_provider, require_runtime
from moe_export.system.machine import machine, versions


def diagnose() -> Iterator[tuple[str, str]]:
    """Yields the findings, each a name and one line."""
    facts = machine()
    yield "processor", f"{facts['cpu']}, {facts['cores']} usable cores"
    total = facts["memory_bytes"]
    yield "memory", "unknown" if total is None else f"{total / 2**30:.1f} GiB"
    yield "GPU", facts["gpu"] or "none (the NVIDIA driver reports none)"
    yield from versions().items()
    try:
        library = describe()
        yield "native library", str(library.path)
        yield "kernel", f"{library.kernel}: {library.reason}"
        yield "CUDA kernels", describe_cuda() or "a driver is there for them"
    except DependencyError as error:
        yield "native library", f"not available: {error}"
    try:
        require_runtime()
    except DependencyError as error:
        yield "ONNX Runtime", str(error)
        return
    for provider in PROVIDERS:
        try:
            require_provider(provider)
            yield f"provider {provider}", "available"
        except DependencyError as error:
            yield f"provider {provider}", f"not available: {error}"
