"""Embedded demo model: a small trained Mixture-of-Experts checkpoint and its tasks.

With it, every stage runs and accuracy is measured without a download.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def checkpoint_dir() -> Path:
    """Directory of the shipped checkpoint, in Hugging Face layout."""
    return Path(str(files(__name__) / "model"))
