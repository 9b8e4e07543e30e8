"""moe-export: prune a Mixture-of-Experts model by expert dimension and run it in ONNX Runtime."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from moe_export._transformers import register_when_imported

try:
    __version__ = version("moe-export")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0+source"

register_when_imported()

__all__ = ["__version__"]
