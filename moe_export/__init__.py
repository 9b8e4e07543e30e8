"""moe-export: prune a Mixture-of-Experts model by expert dimension and run it in ONNX Runtime."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from moe_export._transformers import register_when_imported

try:
    __version__ = version("moe-export")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0+source"

register_when_imported()


def library_path() -> Path:
    """The native operator library, for `SessionOptions.register_custom_ops_library(str(...))`.

    Raises:
        DependencyError: moe-export was installed without it.
    """
    from moe_export.op import library  # noqa: PLC0415 - importing moe_export loads nothing heavy

    return library.library_path()


__all__ = ["__version__", "library_path"]
