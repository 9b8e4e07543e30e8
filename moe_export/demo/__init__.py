"""Embedded demo models: small trained Mixture-of-Experts checkpoints, and their tasks.

With them, every stage runs and accuracy is measured without a download.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

FOLDERS = {"demo": "model", "demo-narrow": "narrow"}
"""Folder of each model, by the name that `model.source` gives it."""


def checkpoint_dir(name: str = "demo") -> Path:
    """Directory of a shipped checkpoint, in Hugging Face layout.

    Args:
        name: Name of the model, one of `FOLDERS`.
    """
    return Path(str(files(__name__) / FOLDERS[name]))
