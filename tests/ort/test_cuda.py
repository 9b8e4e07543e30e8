"""A missing part of CUDA is named, with what brings it."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_export.errors import DependencyError
from moe_export.ort import cuda, device_memory
from moe_export.ort.session import require_native


@pytest.mark.parametrize(
    ("library", "source"),
    [
        ("libcublasLt.so.13", "the package nvidia-cublas brings it (moe-export[gpu])"),
        ("libcudart.so.13", "the package nvidia-cuda-runtime brings it (moe-export[gpu])"),
        ("libcuda.so.1", "the NVIDIA driver brings it"),
    ],
)
def test_a_library_is_named_with_what_brings_it(library: str, source: str) -> None:
    message = f"{library}: cannot open shared object file: No such file or directory"
    assert cuda.explain(message) == f"{library} is not found; {source}"


def test_a_library_that_nothing_is_known_of_is_named() -> None:
    message = "libelse.so.1: cannot open shared object file: No such file or directory"
    assert cuda.explain(message) == "libelse.so.1 is not found"
    assert cuda.explain("undefined symbol: f") == "undefined symbol: f"


def test_a_runtime_without_the_provider_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "PROVIDER_LIBRARY", "libabsent.so")
    with pytest.raises(DependencyError, match="has no CUDA provider; install"):
        cuda.require_cuda_libraries()


def test_a_provider_that_cannot_be_loaded_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    damaged = tmp_path / "libdamaged.so"
    damaged.write_bytes(b"no library")
    monkeypatch.setattr(cuda, "PROVIDER_LIBRARY", str(damaged))
    with pytest.raises(DependencyError, match=r"CUDA cannot start: .*libdamaged"):
        cuda.require_cuda_libraries()


def test_the_native_library_says_why_it_cannot_use_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "describe_cuda", lambda: "the NVIDIA driver is for CUDA 11.8")
    with pytest.raises(DependencyError, match=r"cannot use CUDA: the NVIDIA driver is for CUDA 11"):
        require_native("cuda")


def test_device_memory_without_a_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "DRIVER", "libabsent.so.1")
    with pytest.raises(DependencyError, match=r"memory cannot be read: libabsent.so.1: cannot op"):
        device_memory.DeviceMemory()


def test_a_driver_without_a_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "DRIVER", "libc.so.6")
    with pytest.raises(DependencyError, match=r"cannot be read: libc\.so\.6 has no cuInit"):
        device_memory.DeviceMemory()
