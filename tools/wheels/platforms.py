"""The platforms that wheels are made for."""

from __future__ import annotations

from dataclasses import dataclass

from tools.zig import Target


@dataclass(frozen=True)
class Platform:
    """One platform.

    Attributes:
        tag: Platform tag of the wheel.
        words: System and processor for readers.
        target: Platform as zig and CMake name it.
        library: Name of the library's file.
        policy: Tag that auditwheel has to allow; None where it knows no policies.
    """

    tag: str
    words: str
    target: Target
    library: str
    policy: str | None = None


_SO, _DLL, _DYLIB = "libmoe_export_ops.so", "moe_export_ops.dll", "libmoe_export_ops.dylib"

PLATFORMS = (
    Platform(
        "manylinux_2_28_x86_64",
        "Linux x86-64",
        Target("x86_64-linux-gnu.2.28", "Linux", "x86_64"),
        _SO,
        "manylinux_2_28_x86_64",
    ),
    Platform(
        "manylinux_2_28_aarch64",
        "Linux arm64",
        Target("aarch64-linux-gnu.2.28", "Linux", "aarch64"),
        _SO,
        "manylinux_2_28_aarch64",
    ),
    Platform(
        "win_amd64", "Windows x86-64", Target("x86_64-windows-gnu", "Windows", "x86_64"), _DLL
    ),
    Platform(
        "win_arm64", "Windows arm64", Target("aarch64-windows-gnu", "Windows", "aarch64"), _DLL
    ),
    Platform(
        "macosx_14_0_arm64",
        "macOS arm64",
        Target("aarch64-macos.14.0", "Darwin", "aarch64"),
        _DYLIB,
    ),
)
"""Platforms for which onnxruntime has wheels."""
