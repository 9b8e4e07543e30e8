"""The native library: its place, and its registration in a session.

It holds the fast kernels of `RaggedMoE`. Without it ONNX Runtime runs an exported model by the
function of standard operators that the model carries.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from moe_export.errors import DependencyError
from moe_export.op.c_interface import MESSAGE_BYTES, load
from moe_export.op.platforms import (
    PACKAGE,
    PlatformName,
    library_in_wheels,
    library_name,
    named,
    this_platform,
)

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

LIBRARY_NAME = library_name()


@dataclass(frozen=True)
class LibraryDescription:
    """State of the library in this process.

    Attributes:
        path: file of the library.
        kernel: kernels in use, such as `avx512` or `dotprod`.
        reason: reason for that choice.
        ort_api_version: oldest version of ONNX Runtime's C interface that the library works with.
    """

    path: Path
    kernel: str
    reason: str
    ort_api_version: int


def library_path() -> Path:
    """File of the native library, for `SessionOptions.register_custom_ops_library`.

    It is that of this package or, if the package was installed without it, that of the package
    moe-export-ops.

    Raises:
        DependencyError: if neither is installed.
    """
    beside = Path(__file__).with_name(LIBRARY_NAME)
    if beside.is_file():
        return beside
    # An editable install leaves the sources in place and puts the built library elsewhere.
    try:
        distribution = metadata.distribution("moe-export")
    except metadata.PackageNotFoundError:
        pass
    else:
        installed = Path(str(distribution.locate_file(f"moe_export/op/{LIBRARY_NAME}")))
        if installed.is_file():
            return installed
    alone = find_spec(PACKAGE)
    if alone is not None and alone.origin is not None:
        installed = Path(alone.origin).with_name(LIBRARY_NAME)
        if installed.is_file():
            return installed
    raise DependencyError(
        f"the native library {LIBRARY_NAME} is not installed beside {Path(__file__).parent}: "
        "install a wheel of moe-export-ops for this system, or moe-export by `pip install .` with "
        "a C++ compiler at hand, which builds it"
    )


def library_files(
    platforms: Sequence[PlatformName] | None = None, wheels: Path | None = None
) -> dict[str, bytes]:
    """Contents of the libraries beside an exported model, by the names that they get there.

    Args:
        platforms: platforms, each with a library under a name of its own; if None, the library of
            this machine under its bare name.
        wheels: folder of wheels of moe-export-ops, for platforms other than this machine's.

    Raises:
        DependencyError: a library is missing.
    """
    if platforms is None:
        return {LIBRARY_NAME: library_path().read_bytes()}
    here = this_platform()
    # The library of this machine comes first: onnxruntime-genai's config can name only one.
    ordered = sorted(map(named, platforms), key=lambda platform: platform != here)
    return {
        platform.exported: library_path().read_bytes()
        if platform == here
        else library_in_wheels(platform, wheels)
        for platform in ordered
    }


def register(options: SessionOptions, path: Path | None = None) -> None:
    """Lets a session's `RaggedMoE` nodes run in the native library.

    Args:
        options: options of a session to be created; may be registered once.
        path: file of the library; that of the installed package if None.

    Raises:
        DependencyError: if the library is absent.
    """
    options.register_custom_ops_library(str(path or library_path()))


def describe_cuda(path: Path | None = None) -> str | None:
    """Reason that the CUDA kernels cannot run in this process; None if there is a driver.

    Raises:
        DependencyError: if the library is absent or cannot be loaded.
    """
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    library = load(path or library_path())
    refused = library.moe_export_cuda_describe(message, ctypes.c_size_t(MESSAGE_BYTES))
    return message.value.decode() if refused else None


def describe(path: Path | None = None) -> LibraryDescription:
    """Describes the library, and the kernels that it uses in this process.

    Raises:
        DependencyError: if the library is absent or cannot be loaded, or MOE_EXPORT_KERNEL asks for
            a kernel that this processor lacks.
    """
    path = path or library_path()
    library = load(path)
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    refused = library.moe_export_describe(message, ctypes.c_size_t(MESSAGE_BYTES))
    text = message.value.decode()
    if refused:
        raise DependencyError(text)
    kernel, _, reason = text.partition(": ")
    return LibraryDescription(path, kernel, reason, library.moe_export_ort_api_version())
