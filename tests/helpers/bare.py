"""Processes of Python that lack what Windows and macOS lack."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_BARE = """
import os, pathlib, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.sched_getaffinity, os.sysconf, signal.SIGHUP
from moe_export.system import host
host.SYSTEM = "other"
host.PROC = pathlib.Path("/absent")
"""


def bare_environment(folder: Path) -> dict[str, str]:
    """Environment whose processes lose the calls of Linux when they start, and theirs too.

    Args:
        folder: Empty folder for a module that Python loads when it starts.
    """
    (folder / "sitecustomize.py").write_text(_BARE, encoding="utf-8")
    path = os.pathsep.join(map(str, (folder, _ROOT)))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
