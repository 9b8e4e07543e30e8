"""The embedded demo model: a small trained Mixture-of-Experts checkpoint and the tasks it learnt.

It lets every stage run, and accuracy be measured, without a download.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def checkpoint_dir() -> Path:
    """The directory of the shipped checkpoint, in Hugging Face layout."""
    return Path(str(files(__name__) / "model"))
